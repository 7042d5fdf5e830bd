//! Tests of gateways: enrolment, certificates, signing tokens.

mod certificates;
mod enrolment;
mod signing_token;
