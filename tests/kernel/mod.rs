//! Missions, people, autonomy.

mod autonomy;
mod missions;
mod people;
