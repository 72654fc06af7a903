//! Finishing or undoing the migration of a machine knowing nothing but what was journalled.

use std::time::Duration;

use whimbrel_engine::{Left, Recover};

use crate::device_state;
use crate::error::Result;
use crate::launch::MachineResources;
use crate::machine::Machine;
use crate::memory::{CopyMemory, GuestMemory};
use crate::pager::QemuPager;
use crate::replica::announce;
use crate::source::{self, SourceResources};
use crate::spec::decode;

/// How long the disks are waited for that the destination has taken: until it notices that it has lost the machine.
const DISKS_MAX: Duration = Duration::from_secs(60);
const JOURNAL: &str = "what the journal says";

/// Cleans up after dead controllers of machines.
#[derive(Clone, Copy, Debug, Default)]
pub struct QemuRecover;

impl Recover for QemuRecover {
    type Error = crate::error::MachineError;
    type Store = CopyMemory;
    type Pager = QemuPager;

    fn stays(&self, resources: &[u8]) -> Result<()> {
        let resources =
            decode::<SourceResources>(JOURNAL, resources)?.filter(|resources| resources.process.is_alive());
        let Some((resources, settings)) =
            resources.and_then(|r| r.settings.clone().map(|settings| (r, settings)))
        else {
            return Ok(());
        };
        let mut machine = resources.attach()?;
        // What the dead controller was in the middle of.
        device_state::cancel(&mut machine.qmp)?;
        device_state::dismiss_left(&mut machine.qmp);
        if resources.ran && !machine.is_running()? {
            machine.go_on(DISKS_MAX)?;
        }
        settings.restore(&mut machine.qmp)
    }

    fn moved(&self, resources: &[u8]) -> Result<()> {
        match decode::<SourceResources>(JOURNAL, resources)? {
            Some(resources) => source::end(&resources, None),
            None => Ok(()),
        }
    }

    /// Of a machine that does not answer any more its memory can still be had: QEMU need not answer for that.
    fn store(&self, resources: &[u8]) -> Result<CopyMemory> {
        let resources =
            decode::<SourceResources>(JOURNAL, resources)?.filter(|resources| resources.process.is_alive());
        let Some(resources) = resources else {
            return Ok(CopyMemory(None));
        };
        let memory = GuestMemory::reopen(resources.process.pid, &resources.blocks)?;
        Ok(CopyMemory(Some(memory)))
    }

    fn pager(&self, resources: &[u8]) -> Result<Left<QemuPager>> {
        let Some(resources) = decode::<MachineResources>(JOURNAL, resources)? else {
            return Ok(Left::Nothing);
        };
        match (&resources.pager, resources.process) {
            (Some(pager), Some(process)) if process.is_alive() => {
                QemuPager::recover(&resources, pager, process)
            }
            _ => Ok(Left::Nothing),
        }
    }

    fn discard(&self, resources: &[u8]) -> Result<()> {
        match decode::<MachineResources>(JOURNAL, resources)? {
            Some(resources) => resources.discard(),
            None => Ok(()),
        }
    }

    /// A machine that lacks pages may not answer before somebody serves it: who does lets it run, see [`QemuPager`].
    fn start(&self, resources: &[u8]) -> Result<()> {
        let resources = decode::<MachineResources>(JOURNAL, resources)?;
        let Some(resources) = resources.filter(|r| r.process.is_some_and(|process| process.is_alive()))
        else {
            return Ok(());
        };
        if resources
            .pager
            .as_ref()
            .is_some_and(|pager| pager.missing.exists())
        {
            return Ok(());
        }
        let mut machine = Machine::attach(&resources.monitor())?;
        if resources.running && !machine.is_running()? {
            machine.go_on(DISKS_MAX)?;
        }
        announce(&mut machine)?;
        match &resources.settings {
            Some(settings) => settings.restore(&mut machine.qmp),
            None => Ok(()),
        }
    }
}
