//! `whimbrel resume`: decides a migration that was interrupted.

use anyhow::anyhow;
use whimbrel_engine::guardian::{take_over, GuardianOptions, Settled};
use whimbrel_engine::journal::{Record, Role};
use whimbrel_engine::LINK_TIMEOUT;
use whimbrel_wire::MigrationId;

use std::net::TcpListener;
use std::time::Duration;

use crate::args::ResumeArgs;
use crate::exit::{refused, Code, Coded};
use crate::{host, interrupt};

/// How long the other end is told what was decided here.
const TELL_FOR: Duration = Duration::from_secs(3);

/// Asks the destination until it answers or the user has enough, or takes the workload back.
pub fn run(args: &ResumeArgs) -> anyhow::Result<()> {
    let cancel = interrupt::watch()?;
    let journals = host::journals();
    let record = find(args.id)?;
    let listener = listen(&record)?;
    let options = GuardianOptions {
        link_timeout: LINK_TIMEOUT,
        ask_for: None,
        force_here: args.here && args.force,
        listener: listener.as_ref(),
        answer_for: TELL_FOR,
        follow: true,
        cancel: &cancel,
    };
    let settled = take_over(&journals, args.id, record.role, &host::recover(), &options)?;
    match host::told(&record, &Ok(settled)) {
        Some(sentence) if matches!(settled, Settled::Undecided | Settled::Serving) => Err(Coded {
            code: match settled {
                Settled::Undecided => Code::Undecided,
                _ => Code::Unclean,
            },
            sentence,
        }
        .into()),
        Some(sentence) => {
            println!("{sentence}");
            Ok(())
        }
        None => Ok(()),
    }
}

/// A destination that lacks pages has to be found by its source, at the address that it knows.
fn listen(record: &Record) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = record.listen.as_ref().filter(|_| record.missing_pages.is_some()) else {
        return Ok(None);
    };
    TcpListener::bind(address).map(Some).map_err(|e| {
        refused(format!(
            "cannot listen on {address}, where the source looks for this migration: {e}"
        ))
    })
}

/// The journal of this migration; at the source if both ends are on this host.
fn find(id: MigrationId) -> anyhow::Result<Record> {
    let journals = host::journals();
    for role in [Role::Source, Role::Destination] {
        if let Some(record) = journals.read(id, role).map_err(|e| anyhow!(e))? {
            return Ok(record);
        }
    }
    Err(refused(format!(
        "no migration here has the id {id}; see whimbrel ps"
    )))
}
