//! Tests of missions, people and autonomy.

mod autonomy;
mod missions;
mod people;
