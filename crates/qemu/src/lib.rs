//! A [`Workload`](whimbrel_engine::Workload) and a [`Replica`](whimbrel_engine::Replica) made of QEMU virtual machines: stock
//! QEMU, 7.2 and newer. The files are listed in ARCHITECTURE.md.
#![forbid(unsafe_code)]

pub mod arguments;
pub mod qmp;
pub mod running;
