//! `whimbrel check`: what stands in the way of a move, here and at a destination that is asked. Nothing is touched.

use whimbrel_engine::source::{ask, SourceOptions, ASK_FOR};
use whimbrel_engine::{Error, ResidualOptions, Workload};
use whimbrel_policy::{Hints, Limits, Migration, StopCopy};
use whimbrel_wire::MigrationId;

use crate::args::CheckArgs;
use crate::exit::refused;
use crate::subject::{self, Task};
use crate::watch::Watch;
use crate::{host, interrupt};

/// Says that it can move, or why not.
pub fn run(args: &CheckArgs) -> anyhow::Result<()> {
    let name = subject::with(&args.workload, Check(args))?;
    println!("{}", can_move(&name, args.destination.as_deref()));
    Ok(())
}

struct Check<'a>(&'a CheckArgs);

impl Task for Check<'_> {
    type Done = String;

    fn carry_out<W: Workload>(self, workload: &mut W, name: String) -> anyhow::Result<String> {
        looked_at(workload, name, self.0)
    }
}

fn can_move(name: &str, destination: Option<&str>) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let name: String = name.chars().map(clean).collect();
    match destination {
        Some(destination) => format!("{name} can move to {destination}"),
        None => format!("{name} can move"),
    }
}

/// What `migrate` looks at before it touches anything, at both ends if there are two.
fn looked_at<W: Workload>(workload: &mut W, name: String, args: &CheckArgs) -> anyhow::Result<String> {
    let refusal = match (&args.destination, &args.key) {
        (Some(destination), Some(key)) => {
            let options = SourceOptions {
                id: MigrationId::random()?,
                key: key.clone(),
                destination: destination.clone(),
                workload_name: name.clone(),
                migration: Migration::new(Box::new(StopCopy), Limits::default(), Hints::default()),
                residual: ResidualOptions::default(),
                trace: None,
                link_timeout: args.link_timeout,
                followed: false,
                ask_for: ASK_FOR,
                journals: host::journals(),
                cancel: interrupt::watch()?,
            };
            ask(workload, options, &mut Watch::new(None)?).err()
        }
        _ => workload.describe().err().map(Error::workload),
    };
    match refusal {
        Some(why) => Err(refused(format!("{name} cannot move: {why}"))),
        None => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_move_the_cursor() {
        assert_eq!(can_move("sh\n (7)", None), "sh  (7) can move");
    }
}
