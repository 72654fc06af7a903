//! Exit codes, and errors as one sentence.

use std::fmt;
use std::process::ExitCode;

/// What the process returns. The numbers are promised to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// It failed, and the workload runs on where it was.
    Failed = 1,
    /// The command line is wrong, or a file that it names.
    Usage = 2,
    /// Nothing was touched.
    Refused = 3,
    /// It is not known yet where the workload will run; it is frozen at the source.
    Undecided = 4,
    /// It runs at the destination, but something after that failed.
    Unclean = 5,
    /// The user did not want it any more.
    Cancelled = 130,
}

/// A failure with an exit code of its own.
#[derive(Debug)]
pub struct Coded {
    /// What the process returns.
    pub code: Code,
    /// What the user reads.
    pub sentence: String,
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Coded {}

/// A refusal.
pub fn refused(sentence: impl fmt::Display) -> anyhow::Error {
    Coded {
        code: Code::Refused,
        sentence: sentence.to_string(),
    }
    .into()
}

/// A wrong command line, or a file that is not what it should be.
pub fn misused(sentence: impl fmt::Display) -> anyhow::Error {
    Coded {
        code: Code::Usage,
        sentence: sentence.to_string(),
    }
    .into()
}

/// Says what went wrong, and what that means for the caller of this program.
pub fn report(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("whimbrel: {}", one_line(&format!("{error:#}")));
    ExitCode::from(code_of(&error) as u8)
}

fn code_of(error: &anyhow::Error) -> Code {
    error
        .downcast_ref::<Coded>()
        .map_or(Code::Failed, |coded| coded.code)
}

/// A sentence from the other host must not move the cursor or fake lines of ours.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_one_line_with_their_code() {
        let error = refused("no: \x1b[2J\nroot# ");
        assert_eq!(one_line(&format!("{error:#}")), "no:  [2J root# ");
        assert_eq!(code_of(&error) as u8, 3);
        assert_eq!(code_of(&anyhow::anyhow!("x")) as u8, 1);
        assert_eq!(Code::Cancelled as u8, 130);
    }
}
