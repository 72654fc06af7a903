//! Cost must grow with what changed, not with what exists.

use whimbrel_testbed::{programs, TwoHosts};

use crate::record::{destination_ms, ms, phase_ms};
use crate::rig::{How, Rig, Side};

pub fn with_idle_memory() {
    println!("4 MB rewritten at 20 MB/s, the rest idle; unshaped; milliseconds\n");
    let columns = [
        "memory",
        "total",
        "track",
        "freeze",
        "capture",
        "last scan",
        "last pages",
        "build",
        "complete",
        "downtime",
    ];
    println!("{}", columns.map(|name| format!("{name:>11}")).join(""));
    for megabytes in [512, 2048, 8192] {
        let rig = Rig::with(TwoHosts::builder().unshaped(), &[programs::c("writer").unwrap()]);
        rig.run(&format!("writer {megabytes} 4 20"));
        rig.more_steps(Side::Alpha, 3);
        let record = rig.moved(Side::Alpha, &How::default());
        rig.more_steps(Side::Beta, 3);
        rig.finish(Side::Beta);
        let numbers = [
            ms(&record, "total_us"),
            phase_ms(&record, "track"),
            phase_ms(&record, "freeze"),
            phase_ms(&record, "capture"),
            phase_ms(&record, "last-scan"),
            phase_ms(&record, "last-pages"),
            destination_ms(&record, "build_us"),
            destination_ms(&record, "load_us"),
            ms(&record, "downtime_us"),
        ];
        let memory = format!("{:.1} GB", megabytes as f64 / 1024.0);
        println!(
            "{memory:>11}{}",
            numbers.map(|number| format!("{number:>11.2}")).join("")
        );
    }
}
