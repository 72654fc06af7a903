//! The wires between the hosts, the switch and the client.

use std::fs;

use crate::error::{Doing, Result};
use crate::host::Host;

/// Length of the queue in front of the shaper, as time, and how much may pass at once. tc-tbf(8).
const SHAPER_QUEUE: &str = "20ms";
const SHAPER_BURST: &str = "256k";

/// What an interface has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that came in.
    pub received: u64,
    /// Bytes that went out.
    pub sent: u64,
}

/// Runs `ip` or another tool with a line of words.
fn tool(host: &Host, line: &str) -> Result<()> {
    host.network_tool(line).map(drop)
}

/// Makes the switch's bridge.
pub(crate) fn make_switch(switch: &Host) -> Result<()> {
    tool(switch, "ip link add sw0 type bridge forward_delay 0")?;
    tool(switch, "ip link set sw0 up")
}

/// Lays a cable between the switch and `host`, where its end is called `eth0`.
pub(crate) fn lay_cable(switch: &Host, host: &Host) -> Result<()> {
    let (port, pid) = (port(host), host.pid());
    tool(
        switch,
        &format!("ip link add {port} type veth peer name eth0 netns {pid}"),
    )?;
    tool(switch, &format!("ip link set {port} master sw0 up"))?;
    tool(host, "ip link set lo up")?;
    tool(host, "ip link set eth0 up")
}

/// Makes the bridge `br0` of a whole host, which holds the cable. Its MAC is set by hand: else it would be
/// that of one of the ports, and change when a workload comes or goes.
pub(crate) fn make_bridge(host: &Host, number: u8) -> Result<()> {
    tool(
        host,
        &format!("ip link add br0 address 02:77:00:00:00:{number:02x} type bridge forward_delay 0"),
    )?;
    tool(host, "ip link set eth0 master br0")?;
    tool(host, "ip link set br0 up")?;
    give_addresses(host, number, "br0")
}

/// Gives host `number` its addresses. No duplicate address detection: it would only cost time.
pub(crate) fn give_addresses(host: &Host, number: u8, interface: &str) -> Result<()> {
    tool(
        host,
        &format!("ip address add 10.77.0.{number}/24 dev {interface}"),
    )?;
    tool(
        host,
        &format!("ip address add fd77::{number:x}/64 dev {interface} nodad"),
    )
}

/// Makes a tap device, plugged into the bridge of `host`, that lasts until it is removed or the host is.
pub(crate) fn make_tap(host: &Host, tap: &str) -> Result<()> {
    tool(host, &format!("ip tuntap add dev {tap} mode tap"))?;
    tool(host, &format!("ip link set {tap} master br0 up"))
}

/// Removes what [`make_tap`] made.
pub(crate) fn remove_tap(host: &Host, tap: &str) -> Result<()> {
    tool(host, &format!("ip link delete {tap}"))
}

/// Shapes the cable of `host` in both directions; `rate` as tc(8) writes it.
pub(crate) fn shape(switch: &Host, host: &Host, rate: &str) -> Result<()> {
    let shaper = format!("root tbf rate {rate} burst {SHAPER_BURST} latency {SHAPER_QUEUE}");
    tool(switch, &format!("tc qdisc replace dev {} {shaper}", port(host)))?;
    tool(host, &format!("tc qdisc replace dev eth0 {shaper}"))
}

/// Cuts the cable of `host`, or mends it. Packets vanish without a word in both directions; no carrier is lost,
/// as with a switch that died behind the next one.
pub(crate) fn set_cut(switch: &Host, host: &Host, cut: bool) -> Result<()> {
    // Bridge port states, linux/if_bridge.h: 0 disabled, 3 forwarding.
    let state = if cut { 0 } else { 3 };
    tool(
        switch,
        &format!("bridge link set dev {} state {state}", port(host)),
    )
}

/// What `interface` of `host` has counted since it exists.
pub(crate) fn traffic(host: &Host, interface: &str) -> Result<Traffic> {
    Ok(counted(&counters(host)?, interface).unwrap_or_default())
}

/// Whether `host` has this interface.
pub(crate) fn exists(host: &Host, interface: &str) -> Result<bool> {
    Ok(counted(&counters(host)?, interface).is_some())
}

fn counters(host: &Host) -> Result<String> {
    let path = format!("/proc/{}/net/dev", host.pid());
    fs::read_to_string(&path).doing(|| format!("cannot read {path}"))
}

/// Finds the counters in the text of `/proc/net/dev` (proc_pid_net(5)): 8 columns received, 8 columns sent.
fn counted(text: &str, interface: &str) -> Option<Traffic> {
    let numbers = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    let mut numbers = numbers.split_whitespace().map(|number| number.parse().ok());
    Some(Traffic {
        received: numbers.next()??,
        sent: numbers.nth(7)??,
    })
}

/// The switch's end of a host's cable.
fn port(host: &Host) -> String {
    format!("to-{}", host.name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_counters_of_the_right_interface() {
        let text = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      200       1    0    0    0     0       0          0
  eth0:  123456      10    0    0    0     0          0         0   654321      20    0    0    0     0       0          0
";
        assert_eq!(
            counted(text, "eth0"),
            Some(Traffic {
                received: 123_456,
                sent: 654_321
            })
        );
        assert_eq!(counted(text, "eth"), None);
    }
}
