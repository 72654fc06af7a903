//! Who the process is. The system calls change one thread only, so every thread runs them.

use whimbrel_kernel::proc::Status;
use whimbrel_kernel::remote::Remote;

use super::threads::everywhere;
use super::{Error, Result};
use crate::calls::Plan;
use crate::capture::process::credentials as read;
use crate::state::{Credentials, ProcessState};

const PR_CAP_AMBIENT: u64 = 47;
const PR_CAP_AMBIENT_RAISE: u64 = 2;
const CAPABILITIES: u64 = 64;
/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// `SECBIT_KEEP_CAPS` and `SECBIT_NO_SETUID_FIXUP`: changing the user leaves capabilities alone.
const KEEP_WHILE_CHANGING: u64 = 1 << 4 | 1 << 2;

/// Gives all threads the credentials of the process and the signal that they get when their parent dies, which a change of
/// credentials takes away.
pub(super) fn build(leader: &mut Remote, others: &mut [Remote], process: &ProcessState) -> Result<()> {
    let pid = leader.pid();
    let now = read(pid, &Status::read(pid)?).map_err(|error| Error::Unfit(error.to_string()))?;
    let wanted = &process.credentials;
    let same =
        now == Credentials {
            securebits: now.securebits,
            ..wanted.clone()
        } && wanted.securebits == 0;
    let fill = |index: usize, calls: &mut Plan| {
        if !same {
            become_user(calls, wanted, &now);
        }
        let signal = process
            .threads
            .get(index)
            .map_or(0, |thread| thread.parent_death_signal);
        if signal != 0 {
            let args = [libc::PR_SET_PDEATHSIG as u64, signal as u64];
            calls.call("prctl PR_SET_PDEATHSIG", libc::SYS_prctl, &args);
        }
    };
    everywhere(leader, others, fill, |_, _| Ok(()))
}

fn become_user(calls: &mut Plan, wanted: &Credentials, now: &Credentials) {
    let prctl = libc::SYS_prctl;
    for capability in (0..CAPABILITIES).filter(|bit| now.bounding & !wanted.bounding & 1 << bit != 0) {
        calls.call(
            "prctl PR_CAPBSET_DROP",
            prctl,
            &[libc::PR_CAPBSET_DROP as u64, capability],
        );
    }
    calls.call(
        "prctl PR_SET_SECUREBITS",
        prctl,
        &[libc::PR_SET_SECUREBITS as u64, KEEP_WHILE_CHANGING],
    );
    let groups: Vec<u8> = wanted
        .groups
        .iter()
        .flat_map(|group| group.to_ne_bytes())
        .collect();
    let address = calls.put(&groups);
    calls.call(
        "setgroups",
        libc::SYS_setgroups,
        &[wanted.groups.len() as u64, address],
    );
    let [real, effective, saved, files] = wanted.gids.map(u64::from);
    calls.call("setresgid", libc::SYS_setresgid, &[real, effective, saved]);
    calls.call("setfsgid", libc::SYS_setfsgid, &[files]);
    let [real, effective, saved, files] = wanted.uids.map(u64::from);
    calls.call("setresuid", libc::SYS_setresuid, &[real, effective, saved]);
    calls.call("setfsuid", libc::SYS_setfsuid, &[files]);
    // the securebits need a capability that may be gone after the next step
    set_capabilities(calls, now.permitted, now.permitted, wanted.inheritable);
    for capability in (0..CAPABILITIES).filter(|bit| wanted.ambient & 1 << bit != 0) {
        calls.call(
            "prctl PR_CAP_AMBIENT",
            prctl,
            &[PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0],
        );
    }
    calls.call(
        "prctl PR_SET_SECUREBITS",
        prctl,
        &[libc::PR_SET_SECUREBITS as u64, wanted.securebits.into()],
    );
    set_capabilities(calls, wanted.effective, wanted.permitted, wanted.inheritable);
    if wanted.no_new_privs {
        calls.call(
            "prctl PR_SET_NO_NEW_PRIVS",
            prctl,
            &[libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0],
        );
    }
}

/// capset(2) of the calling thread.
fn set_capabilities(calls: &mut Plan, effective: u64, permitted: u64, inheritable: u64) {
    let header: Vec<u8> = [CAPABILITY_VERSION, 0]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let header = calls.put(&header);
    let halves = |shift: u32| [effective >> shift, permitted >> shift, inheritable >> shift];
    let data: Vec<u8> = halves(0)
        .into_iter()
        .chain(halves(32))
        .flat_map(|word| (word as u32).to_ne_bytes())
        .collect();
    let data = calls.put(&data);
    calls.call("capset", libc::SYS_capset, &[header, data]);
}
