//! What the papers say beside what is simulated: `cargo run --release -p whimbrel-sim --example papers NAME`.

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let begun = std::time::Instant::now();
    for paper in whimbrel_sim::papers::simulate(&wanted).unwrap_or_default() {
        for one in &paper.findings {
            println!(
                "{:?} {:>12.4} {:?} {} | {}",
                one.verdict(),
                one.simulated,
                one.paper,
                one.unit,
                one.what
            );
        }
        for chart in &paper.charts {
            println!("{}", chart.title);
            for line in &chart.series {
                println!("  {}: {:.2?}", line.name, line.points);
            }
        }
        println!("{}: {:.1} s", paper.name, begun.elapsed().as_secs_f64());
    }
}
