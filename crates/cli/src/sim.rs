//! `whimbrel sim`: simulated migrations. Needs no privileges and touches nothing but its output.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::thread;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use whimbrel_sim::papers;
use whimbrel_sim::replay::{self, NotReplayed};
use whimbrel_sim::report::{self, Case};
use whimbrel_sim::sweep::{self, Plan};

use crate::args::{PapersArgs, SimArgs, SimCommand};
use crate::exit::misused;
use crate::manager;

/// No scenario is longer, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Runs the command.
pub fn run(args: &SimArgs) -> anyhow::Result<()> {
    if let Some(SimCommand::Papers(args)) = &args.command {
        return simulate_papers(args);
    }
    if let Some(script) = &args.manager {
        return manager::run(script.as_deref());
    }
    if let Some(trace) = &args.replay {
        return replayed(trace);
    }
    let plans: Vec<Plan> = args
        .files
        .iter()
        .map(|file| plan(file, args))
        .collect::<Result<_, _>>()?;
    let cases = simulated(&plans)?;
    show(&cases, args.json)?;
    match &args.out {
        Some(directory) => write(directory, &title(args), &cases),
        None => Ok(()),
    }
}

/// `whimbrel sim papers`
fn simulate_papers(args: &PapersArgs) -> anyhow::Result<()> {
    let papers = papers::simulate(&args.names).ok_or_else(|| {
        let known: Vec<&str> = papers::names().collect();
        let unknown = args.names.iter().find(|name| !known.contains(&name.as_str()));
        let unknown = unknown.map_or("", String::as_str);
        misused(format!(
            "no paper is called \"{unknown}\"; there are {}",
            known.join(", ")
        ))
    })?;
    let shown = match (args.json, args.markdown) {
        (true, _) => papers::json(&papers),
        (_, true) => papers::markdown(&papers),
        _ => papers::text(&papers),
    };
    print(|out| out.write_all(shown.as_bytes()))?;
    let Some(directory) = &args.out else {
        return Ok(());
    };
    let files = [
        ("papers.json", papers::json(&papers)),
        ("papers.html", papers::page(&papers)),
    ];
    write_files(directory, &files)?;
    eprintln!("report: {}", directory.join("papers.html").display());
    Ok(())
}

/// Decides again what was recorded. Another decision is a failure; a file that is no trace is a wrong command line.
fn replayed(path: &Path) -> anyhow::Result<()> {
    let file = path.display();
    let trace = File::open(path).map_err(|error| misused(format!("cannot read {file}: {error}")))?;
    match replay::replay(BufReader::new(trace)) {
        Ok(replayed) => {
            println!("{replayed}");
            Ok(())
        }
        Err(divergence @ NotReplayed::Divergence(_)) => Err(divergence).with_context(|| file.to_string()),
        Err(error) => Err(misused(format!("{file}: {error}"))),
    }
}

fn plan(path: &Path, args: &SimArgs) -> anyhow::Result<Plan> {
    let file = path.display().to_string();
    let text = read(path).map_err(misused)?;
    Plan::new(&text, &file, &args.sweep, args.seed).map_err(misused)
}

/// A text that is not too long. What is wrong with it is one sentence with the file, and the line of what is no text.
pub fn read(path: &Path) -> Result<String, String> {
    let file = path.display();
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|opened| opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    let count = read.map_err(|error| format!("cannot read {file}: {error}"))?;
    if count as u64 > FILE_BYTES_MAX {
        return Err(format!(
            "cannot read {file}: longer than {FILE_BYTES_MAX} bytes, which no scenario is"
        ));
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        format!("{file}:{line}: this is no text in UTF-8")
    })
}

/// On all cores, with a bar on a terminal.
fn simulated(plans: &[Plan]) -> anyhow::Result<Vec<Case>> {
    let bar = match sweep::count(plans) {
        1 => ProgressBar::hidden(),
        count => ProgressBar::new(count as u64),
    };
    bar.set_style(ProgressStyle::with_template(
        "{wide_bar} {pos} of {len}, {eta} left",
    )?);
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let cases = sweep::run(plans, threads, &|| bar.inc(1));
    bar.finish_and_clear();
    cases.map_err(misused)
}

fn show(cases: &[Case], as_json: bool) -> anyhow::Result<()> {
    print(|out| match as_json {
        true => report::json(cases, out),
        false => out.write_all(report::table(cases).as_bytes()),
    })
}

fn print(show: impl FnOnce(&mut BufWriter<io::StdoutLock<'_>>) -> io::Result<()>) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    match show(&mut out).and_then(|()| out.flush()) {
        // Whoever reads had enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to the standard output"),
    }
}

/// What the page is called.
fn title(args: &SimArgs) -> String {
    let stem = |file: &std::path::PathBuf| {
        file.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let names: Vec<String> = args.files.iter().take(TITLE_FILES_MAX).map(stem).collect();
    let more = if args.files.len() > TITLE_FILES_MAX {
        " …"
    } else {
        ""
    };
    format!("Simulated migrations: {}{more}", names.join(", "))
}

/// Names in the title.
const TITLE_FILES_MAX: usize = 5;

fn write(directory: &Path, title: &str, cases: &[Case]) -> anyhow::Result<()> {
    let files = [
        ("outcomes.csv", report::csv(cases)),
        ("report.html", report::page(title, cases)),
    ];
    write_files(directory, &files)?;
    let json = directory.join("outcomes.json");
    let lines = File::create(&json).map(BufWriter::new);
    let written = lines.and_then(|mut lines| report::json(cases, &mut lines).and_then(|()| lines.flush()));
    written.with_context(|| cannot_write(&json))?;
    eprintln!("report: {}", directory.join("report.html").display());
    Ok(())
}

fn write_files(directory: &Path, files: &[(&str, String)]) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| cannot_write(directory))?;
    for (name, text) in files {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| cannot_write(&path))?;
    }
    Ok(())
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Code, Coded};

    fn args(file: &Path, sweep: &str) -> SimArgs {
        SimArgs {
            command: None,
            files: vec![file.to_path_buf()],
            manager: None,
            replay: None,
            sweep: vec![sweep.parse().unwrap()],
            out: None,
            json: false,
            seed: None,
        }
    }

    #[test]
    fn a_paper_that_is_not_there_is_a_wrong_command_line() {
        let args = PapersArgs {
            names: vec!["javmm".into(), "jaws".into()],
            out: None,
            json: false,
            markdown: false,
        };
        let error = simulate_papers(&args).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no paper is called \"jaws\"; there are javmm, teleport, postcopy, lazycopy, alma"
        );
        assert_eq!(error.downcast_ref::<Coded>().unwrap().code, Code::Usage);
    }

    #[test]
    fn what_is_no_scenario_is_a_wrong_command_line() {
        let code = |error: anyhow::Error| error.downcast_ref::<Coded>().unwrap().code;
        let missing = run(&args(Path::new("/nonexistent/a.toml"), "seed=1")).unwrap_err();
        assert!(missing
            .to_string()
            .starts_with("cannot read /nonexistent/a.toml: "));
        assert_eq!(code(missing), Code::Usage);
        let replay = |file: &str| {
            let mut args = args(Path::new("a.toml"), "seed=1");
            args.replay = Some(file.into());
            code(run(&args).unwrap_err())
        };
        assert_eq!(
            [replay("/nonexistent/a.trace"), replay("/dev/null")],
            [Code::Usage; 2]
        );
        let file = std::env::temp_dir().join(format!("whimbrel-{}.latin1.toml", std::process::id()));
        fs::write(&file, b"[memory]\n# gr\xf6\xdfe\n").unwrap();
        let latin = run(&args(&file, "seed=1")).unwrap_err();
        fs::remove_file(&file).unwrap();
        let sentence = format!("{}:2: this is no text in UTF-8", file.display());
        assert_eq!(latin.to_string(), sentence);
        assert_eq!(code(latin), Code::Usage);
        // Endless, and no text either.
        let endless = run(&args(Path::new("/dev/zero"), "seed=1")).unwrap_err();
        assert!(endless.to_string().contains("which no scenario is"), "{endless}");
    }
}
