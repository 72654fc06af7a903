//! Whole migrations of real processes between two namespaced hosts, with the commands that a user types.
//!
//! Run as root, one after the other: `make test`; those that need KVM by `make kvm-test`. `WHIMBREL_SOAK=1` (`make soak`) takes the long counts.
#![allow(clippy::unwrap_used)]

mod clients;
mod compare;
mod errors;
mod failure;
mod frozen;
mod hugepages;
mod kvm;
mod machine_checks;
mod machine_failures;
mod machines;
mod moves;
mod plan;
mod postcopy;
mod replay;
mod rig;
mod servers;
mod tomcat;
