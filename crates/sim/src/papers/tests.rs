use super::*;
#[test]
fn show() {
    for paper in simulate(&std::env::var("P").map(|p| vec![p]).unwrap_or_default()).unwrap() {
        for f in paper.findings { println!("{:60} {:?} {:.3} {} {:?} {:?}", f.what, f.paper, f.simulated, f.unit, f.ratio(), f.verdict()); }
        for b in paper.bars { println!("{}", b.title); for (n,s) in b.names.iter().zip(&b.sums) { println!("  {n:60} {s}"); } }
    }
}
