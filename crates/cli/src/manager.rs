//! `whimbrel sim --manager`: the manager of a simulated hall, from a script or by hand. Touches nothing but the files that it is told to save.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::Path;

use anyhow::Context;
use rustyline::error::ReadlineError;
use whimbrel_sim::manager::{run_script, Reply, ScriptError, Session};

use crate::exit::misused;
use crate::sim::read;

/// Bytes of a line that nobody typed: what is longer is cut and refused, and its rest is left out.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// Runs the command.
pub fn run(script: Option<&Path>) -> anyhow::Result<()> {
    match script {
        Some(path) => carry_out(path),
        None if io::stdin().is_terminal() => by_hand(),
        None => from(&mut io::stdin().lock(), &mut io::stdout()),
    }
}

/// Ends with the first wrong line.
fn carry_out(path: &Path) -> anyhow::Result<()> {
    let file = path.display().to_string();
    let text = read(path).map_err(misused)?;
    match run_script(&text, &file, &mut io::stdout().lock()) {
        Err(ScriptError::Output { cause, .. }) => had_enough(cause),
        Err(error @ ScriptError::Line { .. }) => Err(misused(error)),
        Ok(()) => Ok(()),
    }
}

/// With a prompt, and lines that can be edited and had again.
fn by_hand() -> anyhow::Result<()> {
    let mut editor = rustyline::DefaultEditor::new().context("cannot use the terminal")?;
    let mut session = Session::default();
    println!("A hall of simulated servers. Type help for the commands.");
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(()),
            Err(error) => return Err(error).context("cannot read from the terminal"),
        };
        // What cannot be had again can still be typed again.
        let _ = editor.add_history_entry(line.as_str());
        if !answer(&mut session, &line, &mut io::stdout())? {
            return Ok(());
        }
    }
}

/// Without a prompt. Errors are shown, and it goes on.
fn from(input: &mut impl BufRead, out: &mut impl Write) -> anyhow::Result<()> {
    let mut session = Session::default();
    while let Some(line) = next_line(input).context("cannot read the commands")? {
        match answer(&mut session, &line, out) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => return had_enough(error),
        }
    }
    Ok(())
}

/// A line, or the beginning of one that is too long for any command. `None` at the end.
fn next_line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
        input.skip_until(b'\n')?;
    }
    Ok((!line.is_empty()).then(|| String::from_utf8_lossy(&line).into_owned()))
}

/// Whether it goes on.
fn answer(session: &mut Session, line: &str, out: &mut impl Write) -> io::Result<bool> {
    match session.line(line) {
        Reply::Done(text) => out.write_all(text.as_bytes())?,
        Reply::Refused(sentence) => eprintln!("{sentence}"),
        Reply::Quit => return Ok(false),
    }
    out.flush()?;
    Ok(true)
}

/// Whoever reads may stop reading.
fn had_enough(error: io::Error) -> anyhow::Result<()> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error).context("cannot write to the standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Code, Coded};

    #[test]
    fn a_wrong_line_of_a_script_is_a_wrong_command_line() {
        let file = std::env::temp_dir().join(format!("whimbrel-{}.script", std::process::id()));
        std::fs::write(&file, "create server a\ncreate vm v on b\n").unwrap();
        let error = run(Some(&file)).unwrap_err();
        std::fs::remove_file(&file).unwrap();
        let sentence = format!("{}:2: there is no server b; there are a", file.display());
        assert_eq!(error.to_string(), sentence);
        assert_eq!(error.downcast_ref::<Coded>().unwrap().code, Code::Usage);
        let missing = run(Some(Path::new("/nonexistent/a.script"))).unwrap_err();
        assert!(missing
            .to_string()
            .starts_with("cannot read /nonexistent/a.script: "));
    }

    #[test]
    fn what_is_refused_by_hand_is_no_end() {
        let (mut session, mut out) = (Session::default(), Vec::new());
        assert!(answer(&mut session, "nonsense", &mut out).unwrap());
        assert!(answer(&mut session, "list\n", &mut out).unwrap());
        assert!(!answer(&mut session, "quit", &mut out).unwrap());
        assert_eq!(out, b"clock 0.000 s\n");
        from(
            &mut &b"create server a\n\xff\xff\nquit\nnonsense"[..],
            &mut Vec::new(),
        )
        .unwrap();
    }

    #[test]
    fn the_rest_of_a_line_that_is_too_long_is_no_command() {
        let max = LINE_BYTES_MAX as usize;
        for length in [max - 1, max, max + 1, 3 * max] {
            let text = "#".repeat(length) + "create server a\nlist\n";
            let (mut input, mut lines) = (text.as_bytes(), Vec::new());
            while let Some(line) = next_line(&mut input).unwrap() {
                lines.push(line);
            }
            assert_eq!(lines.len(), 2, "{length}");
            assert_eq!(lines[1], "list\n");
        }
    }
}
