//! The four graphs of the paper: total time, downtime, pages and network faults, over the size of a memory that is rewritten page after page.
//!
//! Hines, Deshpande, Gopalan: "Post-copy live migration of virtual machines", SIGOPS Operating Systems Review 43(3), 2009.

use serde_json::Value;
use whimbrel_sim::chart::{Across, Chart, Scale, Series};
use whimbrel_testbed::programs;

use crate::chart::save;
use crate::record::{cell, heads, ms, pages, residual};
use crate::rig::{How, Rig, Side};

const MEGABYTES: [u64; 5] = [64, 128, 256, 512, 1024];

/// From one page to the next: 50 MB/s. The link carries more than twice as much, so pre-copy needs several rounds and comes to an end by itself.
/// Without a pause every round would be as long as the first one, and what is measured would be when pre-copy gives up.
const THINK_NS: u64 = 80_000;

const STRATEGIES: [&str; 3] = ["precopy", "postcopy", "hybrid"];

/// One graph: its file, its title, what it counts, its scale, and its number.
struct Graph {
    file: &'static str,
    title: &'static str,
    left: &'static str,
    scale: Scale,
    number: fn(&Value) -> f64,
}

const GRAPHS: [Graph; 4] = [
    Graph {
        file: "total-time.svg",
        title: "Total migration time",
        left: "s",
        scale: Scale::Linear,
        number: |record| ms(record, "total_us") / 1e3,
    },
    Graph {
        file: "downtime.svg",
        title: "Downtime",
        left: "ms",
        scale: Scale::Logarithmic,
        number: |record| ms(record, "downtime_us"),
    },
    Graph {
        file: "pages.svg",
        title: "Pages sent",
        left: "thousands of pages of 4 KiB",
        scale: Scale::Linear,
        number: |record| pages(record) / 1e3,
    },
    Graph {
        file: "faults.svg",
        title: "Network faults",
        left: "faults",
        scale: Scale::Linear,
        number: |record| residual(record, "network_faults"),
    },
];

pub fn by_memory_size() {
    println!("one thread rewrites all of the memory, page after page, 50 MB/s; 1 Gbit/s\n");
    heads(&[
        "memory MB",
        "strategy",
        "total s",
        "down ms",
        "k pages",
        "faults",
        "rounds",
        "resume s",
    ]);
    // By strategy, then by size.
    let mut records: [Vec<Value>; 3] = Default::default();
    for megabytes in MEGABYTES {
        let rig = Rig::new(&[programs::c("paging").unwrap()]);
        rig.run(&format!("paging {megabytes} writer 1 {THINK_NS}"));
        let mut side = Side::Alpha;
        for (strategy, records) in STRATEGIES.iter().zip(&mut records) {
            rig.more_steps(side, 3);
            let record = rig.moved(side, &How::with(&format!("--strategy {strategy}")));
            side = side.other();
            let numbers = GRAPHS.iter().zip([2, 1, 1, 0]);
            let cells: String = numbers
                .map(|(graph, decimals)| cell((graph.number)(&record), decimals))
                .collect();
            let rounds = record["rounds"].as_array().map_or(0, Vec::len);
            let resume = cell(residual(&record, "duration_us") / 1e6, 2);
            println!("{megabytes:>11}{strategy:>11}{cells}{rounds:>11}{resume}");
            records.push(record);
        }
        rig.more_steps(side, 3);
        rig.finish(side);
    }
    draw(&records);
}

fn draw(records: &[Vec<Value>; 3]) {
    for graph in GRAPHS {
        let lines = STRATEGIES.iter().zip(records);
        let series = lines.map(|(name, records)| Series::of_columns(name, records.iter().map(graph.number)));
        let chart = Chart {
            title: graph.title.to_string(),
            left: graph.left.to_string(),
            bottom: "memory that is rewritten at 50 MB/s, MB".to_string(),
            across: Across::Columns(MEGABYTES.map(|megabytes| megabytes.to_string()).to_vec()),
            series: series.collect(),
            scale: graph.scale,
            ..Chart::default()
        };
        save(graph.file, &chart);
    }
}
