//! What is sent to a workload while it is frozen and cut off: caught on its bridge, and sent again when it runs, here or at its
//! destination. Without it every peer would wait for its own retransmission timer, 200 ms at least.
//!
//! ```text
//! open            promiscuous on the bridge, catches nothing yet       the workload runs
//! hold            catches what is for the workload                     right before `lock`
//! deliver_here    it stays: sends it on through the port               right after `unlock`
//! forward         it has moved: sends it on through the bridge, where  right after the destination's word
//!                 the destination's announcement shows the way
//! forward_late    what came here since then                            at the end
//! ```
//!
//! All of it is best effort: peers send again what gets lost. A frame that slips through before the port is closed or after it
//! was opened is delivered and sent again: TCP drops the second one, and a datagram may arrive twice as on any network.

use std::net::IpAddr;

use whimbrel_kernel::frames::{Catcher, Resent, Wanted};
use whimbrel_kernel::netlink::{Mac, Netlink};

use super::{network::find, Resources, Result};

/// Frames for one workload.
#[derive(Debug)]
pub struct Frames {
    catcher: Catcher,
    mac: Mac,
    addresses: Vec<IpAddr>,
}

impl Frames {
    /// Looks at the bridge of the workload; `None` if it has no network of its own. To be dropped when nobody waits for it: that takes
    /// milliseconds.
    pub fn open(resources: &Resources) -> Result<Option<Self>> {
        let Some(network) = &resources.network else {
            return Ok(None);
        };
        let bridge = find(&mut Netlink::open()?, &network.bridge)?;
        Ok(Some(Self {
            catcher: Catcher::open(bridge.index, bridge.mac.unwrap_or_default())?,
            mac: network.mac,
            addresses: network.addresses.iter().map(|address| address.ip).collect(),
        }))
    }

    /// From now on frames are caught.
    pub fn hold(&self) -> Result<()> {
        Ok(self.catcher.select(Wanted::For(self.mac))?)
    }

    /// The workload's port is open again: what was caught goes there, and nothing more is caught.
    pub fn deliver_here(&self) -> Result<Resent> {
        self.catcher.select(Wanted::Nothing)?;
        self.send_on()
    }

    /// The workload runs at the destination: what was caught goes there. What this host sends by itself finds the way from now on;
    /// what comes here from outside was sent before the switches had learned it, and is still caught.
    pub fn forward(&self) -> Result<Resent> {
        self.catcher.select(Wanted::ArrivingFor(self.mac))?;
        self.send_on()
    }

    /// What came here since [`Self::forward`] goes to the destination.
    pub fn forward_late(&self) -> Result<Resent> {
        self.send_on()
    }

    fn send_on(&self) -> Result<Resent> {
        Ok(self.catcher.resend(self.mac, &self.addresses)?)
    }
}
