//! [`Port`]: one device, configured with a queue pair per worker and started.
//!
//! *Life-cycle*: opened by [`super::runtime`] after the pool, closed before it. *Threads*: control thread; workers hold
//! queues of it ([`super::DpdkIo`]) and are gone before it closes.
//! *Limits*: no more queues than the device has.

use std::ffi::{CStr, CString};

use dpdk_sys as sys;

use super::eal::{pci_address, port_name};
use super::mempool::Pool;
use super::{check, error};
use crate::api::launch::{DpdkError, Link};

/// What a port is opened for.
#[derive(Debug)]
pub(super) struct Setup<'a> {
    /// A PCI address, or a virtual device with its arguments, to be made.
    pub device: &'a str,
    /// How many workers there are.
    pub workers: u16,
    /// Descriptors per queue.
    pub descriptors: u16,
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// Its MAC address, where it is not to keep its own.
    pub mac: Option<[u8; 6]>,
}

/// Why a port does not open.
#[derive(Debug)]
pub(super) enum OpenError {
    /// The device does not exist, or its driver refuses it.
    Device(DpdkError),
    /// The device has no queue to receive from, or none to send to.
    NoQueue(&'static str),
    /// The device's frames are smaller; its largest.
    Mtu(u16),
    /// DPDK or the driver says no.
    Dpdk(DpdkError),
}

impl From<DpdkError> for OpenError {
    fn from(e: DpdkError) -> Self {
        Self::Dpdk(e)
    }
}

/// A started port.
#[derive(Debug)]
pub(super) struct Port {
    id: u16,
    open: bool,
    driver: String,
    mac: [u8; 6],
    rx_queues: u16,
    tx_queues: u16,
    rss: bool,
    rx_checksums: bool,
    /// Index of the kernel interface behind the port; 0 for none.
    netdev: u32,
    /// What the device would not do, for the operator.
    notes: Vec<String>,
}

impl Port {
    /// Finds, configures and starts the port.
    pub(super) fn open(setup: &Setup<'_>, pool: &Pool) -> Result<Self, OpenError> {
        if pci_address(setup.device).is_none() {
            pool.eal().probe(setup.device).map_err(OpenError::Device)?;
        }
        let id = find(&port_name(setup.device)).map_err(OpenError::Device)?;
        let info = info(id)?;
        let rx_queues = setup.workers.min(info.max_rx_queues);
        let tx_queues = setup.workers.min(info.max_tx_queues);
        if rx_queues == 0 {
            return Err(OpenError::NoQueue("receive"));
        }
        if tx_queues == 0 {
            return Err(OpenError::NoQueue("transmit"));
        }
        if setup.mtu > info.max_mtu {
            return Err(OpenError::Mtu(info.max_mtu));
        }
        // From here on, an early return closes the port by Drop.
        let mut port = Self {
            id,
            open: true,
            driver: text(&info.driver),
            mac: [0; 6],
            rx_queues,
            tx_queues,
            rss: false,
            rx_checksums: info.verifies,
            netdev: info.netdev,
            notes: Vec::new(),
        };

        let spreads = setup.workers > 1 && rx_queues == setup.workers && info.reta_size > 0;
        let hashed = spreads && port.configure(setup, true).is_ok();
        if !hashed {
            port.configure(setup, false)?;
        }
        let descriptors = setup.descriptors;
        // SAFETY: the port is configured for so many queues and stopped; the pool is live and outlives the port.
        let ret = unsafe { sys::shim_port_queues(id, rx_queues, tx_queues, descriptors, descriptors, pool.as_ptr()) };
        check("rte_eth_rx_queue_setup or rte_eth_tx_queue_setup", ret)?;
        // SAFETY: takes any port id and number; needs a configured port, which this is.
        let ret = unsafe { sys::rte_eth_dev_set_mtu(id, setup.mtu) };
        port.tolerate("rte_eth_dev_set_mtu", ret);
        if let Some(mac) = setup.mac {
            port.set_mac(mac)?;
        }
        // SAFETY: takes any port id; configured and all queues set up above.
        let ret = unsafe { sys::rte_eth_dev_start(id) };
        check("rte_eth_dev_start", ret)?;

        // A TAP gives us all that its kernel side sends anyhow; the flags would be that interface's, not ours.
        if port.driver != TAP {
            // SAFETY: takes any port id. A failure is no harm: the MAC address is checked in software.
            let ret = unsafe { sys::rte_eth_promiscuous_enable(id) };
            port.tolerate("rte_eth_promiscuous_enable", ret);
            // SAFETY: takes any port id.
            let ret = unsafe { sys::rte_eth_allmulticast_enable(id) };
            port.tolerate("rte_eth_allmulticast_enable", ret);
        }
        port.rss = hashed && info.hashes_ports && port.spread(setup.workers, info.reta_size);
        port.mac = mac(id)?;
        Ok(port)
    }

    fn configure(&self, setup: &Setup<'_>, rss: bool) -> Result<(), DpdkError> {
        // SAFETY: takes any port id and numbers; the port is stopped.
        let ret = unsafe { sys::shim_port_configure(self.id, self.rx_queues, self.tx_queues, setup.mtu, rss) };
        check("rte_eth_dev_configure", ret).map(drop)
    }

    /// Fills the redirection table; whether it now says what `RETA[i] = i % 128 % workers` says for every hash.
    fn spread(&self, workers: u16, reta_size: u16) -> bool {
        // SAFETY: takes any port id and number; the port is configured with RSS.
        let ret = unsafe { sys::shim_port_reta(self.id, workers) };
        // A table below 128 entries sees fewer bits of the hash: the same answer only where the pattern repeats in it.
        ret == 0 && reta_size.is_power_of_two() && (reta_size >= 128 || reta_size.is_multiple_of(workers))
    }

    /// Notes a refusal that forwarding can live with; "not supported" is not worth a word.
    fn tolerate(&mut self, call: &'static str, ret: i32) {
        if ret < 0 && ret != -ENOTSUP {
            self.notes.push(error(call, -ret).to_string());
        }
    }

    fn set_mac(&mut self, mac: [u8; 6]) -> Result<(), DpdkError> {
        // SAFETY: takes any port id; `mac` is six bytes, read only.
        let ret = unsafe { sys::shim_port_set_mac(self.id, mac.as_ptr()) };
        check("rte_eth_dev_default_mac_addr_set", ret).map(drop)
    }

    /// DPDK's port id.
    pub(super) const fn id(&self) -> u16 {
        self.id
    }

    /// The driver's name.
    pub(super) fn driver(&self) -> &str {
        &self.driver
    }

    /// The device's own MAC address.
    pub(super) const fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Whether the device spreads packets over the workers as our software would.
    pub(super) const fn rss(&self) -> bool {
        self.rss
    }

    /// Whether the device verifies checksums of TCP and UDP.
    pub(super) const fn rx_checksums(&self) -> bool {
        self.rx_checksums
    }

    /// Receive and transmit queues that it has; at most one per worker.
    pub(super) const fn queues(&self) -> (u16, u16) {
        (self.rx_queues, self.tx_queues)
    }

    /// What the device would not do.
    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Carrier and speed now.
    pub(super) fn link(&self) -> Link {
        let (mut up, mut speed_mbps) = (false, 0);
        // SAFETY: takes any port id; both pointers are to live variables of the right type.
        let ret = unsafe { sys::shim_port_link(self.id, &raw mut up, &raw mut speed_mbps) };
        // A TAP whose kernel side was moved into another namespace is a lab's cable: its state cannot be read from here.
        let away = self.driver == TAP && self.netdev != 0 && !netdev_here(self.netdev);
        Link { up: away || (ret == 0 && up), speed_mbps: if ret == 0 { speed_mbps } else { 0 } }
    }

    /// Stops and closes the port.
    pub(super) fn close(mut self) -> Result<(), DpdkError> {
        self.shut()
    }

    fn shut(&mut self) -> Result<(), DpdkError> {
        if !std::mem::take(&mut self.open) {
            return Ok(());
        }
        // SAFETY: takes any port id; no worker uses a queue any more.
        let stopped = unsafe { sys::rte_eth_dev_stop(self.id) };
        if stopped == 0 {
            // SAFETY: takes any port id; the port is stopped.
            let ret = unsafe { sys::rte_eth_dev_close(self.id) };
            return check("rte_eth_dev_close", ret).map(drop);
        }
        // net_tap cannot set down an interface that is in another namespace, and ethdev closes no started port; to
        // remove the device needs neither.
        // SAFETY: takes any port id; no worker uses a queue any more.
        let ret = unsafe { sys::shim_port_remove(self.id) };
        check("rte_dev_remove", ret).map(drop)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // Only on the way out of a failed start, whose error is the one to report.
        let _ = self.shut();
    }
}

/// The id of the port that the EAL calls `name`.
fn find(name: &str) -> Result<u16, DpdkError> {
    let call = "rte_eth_dev_get_port_by_name";
    let Ok(name) = CString::new(name) else { return Err(error(call, ENODEV)) };
    let mut id = 0;
    // SAFETY: `name` is NUL-terminated, `id` a live u16.
    let ret = unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &raw mut id) };
    check(call, ret).map(|_| id)
}

fn info(id: u16) -> Result<sys::shim_port, DpdkError> {
    let mut info = sys::shim_port::default();
    // SAFETY: takes any port id; `info` is a live shim_port.
    let ret = unsafe { sys::shim_port_info(id, &raw mut info) };
    check("rte_eth_dev_info_get", ret)?;
    Ok(info)
}

fn mac(id: u16) -> Result<[u8; 6], DpdkError> {
    let mut mac = [0; 6];
    // SAFETY: takes any port id; `mac` has room for six bytes.
    let ret = unsafe { sys::shim_port_mac(id, mac.as_mut_ptr()) };
    check("rte_eth_macaddr_get", ret)?;
    Ok(mac)
}

fn netdev_here(index: u32) -> bool {
    // SAFETY: takes any number.
    unsafe { sys::shim_netdev_here(index) }
}

/// A C array as text, up to its NUL.
fn text(chars: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().map(|c| c.to_ne_bytes()[0]).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |s| s.to_string_lossy().into_owned())
}

/// The driver whose ports are interfaces of the kernel.
pub(super) const TAP: &str = "net_tap";

/// `ENODEV` of Linux.
const ENODEV: i32 = 19;

/// `ENOTSUP` of Linux.
const ENOTSUP: i32 = 95;
