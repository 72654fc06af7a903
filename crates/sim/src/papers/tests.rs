use super::*;

fn paper(name: &str) -> Paper {
    simulate(&[name.to_owned()]).unwrap().remove(0)
}

fn simulated(paper: &Paper, what: &str) -> f64 {
    let finding = paper.findings.iter().find(|finding| finding.what == what);
    finding.unwrap_or_else(|| panic!("{what}")).simulated
}

fn assert_whole(paper: &Paper) {
    assert!(!paper.findings.is_empty() && !paper.citation.is_empty() && !paper.assumptions.is_empty());
    for finding in &paper.findings {
        assert!(finding.simulated.is_finite(), "{finding:?}");
        let explains = finding.verdict() == Verdict::Agrees || !finding.note.is_empty();
        assert!(explains, "disagrees without a word: {finding:?}");
    }
    let mut names: Vec<&str> = paper
        .findings
        .iter()
        .map(|finding| finding.what.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), paper.findings.len());
}

#[test]
fn an_unknown_paper_is_none() {
    assert!(simulate(&["jaws".to_owned()]).is_none());
}

/// The slides: less time, traffic and downtime where much of the young generation is garbage; a longer downtime for scimark.
#[test]
fn assistance_spares_time_and_traffic_and_costs_scimark_downtime() {
    let javmm = paper("javmm");
    assert_whole(&javmm);
    for program in ["derby", "crypto", "xml", "compiler"] {
        for measure in ["total time", "traffic"] {
            let change = simulated(&javmm, &format!("{program}: {measure}, JAVMM against Xen"));
            assert!(change < -50.0, "{program}, {measure}: {change}");
        }
    }
    let downtimes = ["Xen", "JAVMM"].map(|system| simulated(&javmm, &format!("derby: downtime, {system}")));
    assert!(downtimes[1] < downtimes[0] / 2.0, "{downtimes:?}");
    assert!(simulated(&javmm, "scimark: traffic, JAVMM against Xen") < 0.0);
    assert!(simulated(&javmm, "scimark: downtime, JAVMM against Xen") > 0.0);
    assert_eq!(format!("{javmm:?}"), format!("{:?}", paper("javmm")));
}

/// Table 2 and figure 9, by their signs.
#[test]
fn alma_is_best_but_for_the_downtime_of_javmm() {
    let alma = paper("alma");
    assert_whole(&alma);
    for system in ["CRIU", "JAVMM", "ALMA-PS"] {
        for measure in ["downtime", "traffic", "total time"] {
            let ratio = simulated(&alma, &format!("table 2: {measure}, {system} against ALMA"));
            assert!(
                ratio > 1.0 || (system, measure) == ("JAVMM", "downtime"),
                "{system}, {measure}: {ratio}"
            );
        }
    }
    for system in ["CRIU", "ALMA-PS"] {
        assert!(simulated(&alma, &format!("table 2: throughput, {system} against ALMA")) < 1.0);
    }
    let law = |what: &str| {
        simulated(
            &alma,
            &format!("figure 9: downtime with twice the {what}, simulated"),
        )
    };
    assert!(law("cores") > 1.0 && law("bandwidth") < 0.5);
    assert!(alma
        .findings
        .iter()
        .all(|finding| !finding.what.contains("by (8)")));
    let of_samples = alma
        .findings
        .iter()
        .filter(|finding| finding.what.contains("throughput"));
    assert!(
        of_samples.clone().count() == 3
            && of_samples
                .into_iter()
                .all(|finding| finding.note.contains("samples of 5 s"))
    );
}
