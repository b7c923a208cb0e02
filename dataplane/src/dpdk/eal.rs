//! [`Eal`]: DPDK's runtime, from the launch configuration; and which memory it takes.
//!
//! *Life-cycle*: one per process and no second time, which the EAL itself enforces; `Drop` cleans up, after ports and
//! pool are gone. *Threads*: started and dropped on the control thread, which becomes lcore 0 and polls nothing.

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::fs::{self, File, TryLockError};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dpdk_sys as sys;

use super::mempool::megabytes_needed;
use super::{check, error, last_error};
use crate::api::launch::{DpdkError, HugePages, LaunchConfig, LaunchError};

/// The initialised EAL.
#[derive(Debug)]
pub struct Eal {
    /// Its files at run time.
    directory: PathBuf,
    /// The EAL keeps pointers to its arguments.
    _args: Vec<CString>,
}

/// Whether this process has tried: EAL allows one start.
static STARTED: AtomicBool = AtomicBool::new(false);

impl Eal {
    /// Initialises the EAL on `memory`, of which it takes all.
    pub(super) fn start(config: &LaunchConfig, memory: &Memory) -> Result<Self, LaunchError> {
        let args: Vec<CString> = arguments(config, memory, &allowed_cpus())
            .into_iter()
            .map(|arg| CString::new(arg.clone()).map_err(|_| LaunchError::EalArgument { argument: arg }))
            .collect::<Result<_, _>>()?;
        if STARTED.swap(true, Ordering::AcqRel) {
            return Err(LaunchError::AlreadyStarted);
        }
        // getopt permutes the pointers, hence an array of our own; the strings stay in `args`.
        let mut argv: Vec<*mut c_char> = args.iter().map(|arg| arg.as_ptr().cast_mut()).collect();
        argv.push(std::ptr::null_mut());
        let argc = c_int::try_from(args.len()).map_err(|_| LaunchError::AlreadyStarted)?;
        // SAFETY: `argv` holds `argc` NUL-terminated strings and a null, as main() gets them; the strings live as long as the
        // EAL (`_args`); the EAL writes to none of them; first call in this process (`STARTED`).
        let ret = unsafe { sys::rte_eal_init(argc, argv.as_mut_ptr()) };
        if ret < 0 {
            let source = last_error("rte_eal_init");
            remove(&directory());
            return Err(LaunchError::Eal { source });
        }
        Ok(Self { directory: directory(), _args: args })
    }

    /// Makes the virtual device `device`, arguments and all.
    pub(super) fn probe(&self, device: &str) -> Result<(), DpdkError> {
        let Ok(device) = CString::new(device) else { return Err(error("rte_dev_probe", EINVAL)) };
        // SAFETY: the EAL is initialised (`self`); `device` is NUL-terminated and copied by the callee.
        let ret = unsafe { sys::rte_dev_probe(device.as_ptr()) };
        check("rte_dev_probe", ret).map(drop)
    }
}

/// Where the EAL keeps its files at run time; known from early in its initialisation.
fn directory() -> PathBuf {
    // SAFETY: no precondition: the address of a buffer in static memory, empty before the EAL has begun.
    let directory = unsafe { sys::rte_eal_get_runtime_dir() };
    // SAFETY: not null and NUL-terminated, by the line above; copied here.
    let directory = unsafe { CStr::from_ptr(directory) };
    Path::new(OsStr::from_bytes(directory.to_bytes())).to_owned()
}

/// Removes the directory, which the EAL leaves behind empty; what is not empty is not ours alone.
fn remove(directory: &Path) {
    let _ = fs::remove_dir(directory);
}

impl Drop for Eal {
    fn drop(&mut self) {
        // SAFETY: initialised by `start`, once; ports are closed and the pool is freed: they hold the last other references.
        unsafe { sys::rte_eal_cleanup() };
        remove(&self.directory);
    }
}

/// Where packet memory comes from.
#[derive(Debug)]
pub struct Memory {
    /// 2 MB pages; else ordinary ones.
    pub huge: bool,
    /// How much, MB.
    pub megabytes: u32,
    /// What had to be reserved for it.
    pub(super) reserved: Reserved,
}

/// Huge pages that were added to the machine's for this run; `Drop` takes them off again.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    pages: u64,
    /// Held from counting free pages until they are taken: two processes that start together count in turns.
    turn: Option<File>,
}

impl Reserved {
    /// The EAL has its memory: another process may count what is free.
    pub(super) fn taken(&mut self) {
        self.turn = None;
    }
}

impl Memory {
    /// Decides by the configuration and by what the machine has free, and reserves what is missing. The second value
    /// tells the operator why it is not huge pages, where he did not say so himself.
    ///
    /// # Errors
    /// Huge pages are required, and there are not enough.
    pub fn choose(config: &LaunchConfig) -> Result<(Self, Option<String>), LaunchError> {
        let ordinary = Self { huge: false, megabytes: megabytes_needed(config, false), reserved: Reserved::default() };
        if config.hugepages == HugePages::Off {
            return Ok((ordinary, None));
        }
        let megabytes = megabytes_needed(config, true);
        let (free, reserved) = reserve(u64::from(megabytes).div_ceil(PAGE_MB));
        if free * PAGE_MB >= u64::from(megabytes) {
            return Ok((Self { huge: true, megabytes, reserved }, None));
        }
        drop(reserved);
        let free_megabytes = u32::try_from(free * PAGE_MB).unwrap_or(u32::MAX);
        match config.hugepages {
            HugePages::On => Err(LaunchError::HugePages { megabytes, free_megabytes }),
            HugePages::Auto | HugePages::Off => Ok((
                ordinary,
                Some(format!(
                    "packet memory is in ordinary pages: {megabytes} MB of 2 MB huge pages are needed, {free_megabytes} MB \
                     are free and the rest could not be reserved"
                )),
            )),
        }
    }
}

/// Sees to `pages` free huge pages as far as the kernel lets us; gives how many are free and what was added.
fn reserve(pages: u64) -> (u64, Reserved) {
    let turn = turn();
    let free = read_pages("free_hugepages").unwrap_or(0);
    let mut reserved = Reserved { pages: 0, turn };
    if free >= pages {
        return (free, reserved);
    }
    let Some(had) = read_pages("nr_hugepages") else { return (free, reserved) };
    if fs::write(Path::new(HUGE).join("nr_hugepages"), (had + pages - free).to_string()).is_err() {
        return (free, reserved);
    }
    reserved.pages = read_pages("nr_hugepages").unwrap_or(had).saturating_sub(had);
    (read_pages("free_hugepages").unwrap_or(free), reserved)
}

impl Drop for Reserved {
    /// The kernel keeps those in use until they are free.
    fn drop(&mut self) {
        if self.pages == 0 {
            return;
        }
        let _turn = self.turn.take().or_else(turn);
        if let Some(now) = read_pages("nr_hugepages") {
            // A failure leaves memory reserved that the next start finds free: nothing to report to anyone.
            let _ = fs::write(Path::new(HUGE).join("nr_hugepages"), now.saturating_sub(self.pages).to_string());
        }
    }
}

/// A lock among processes; after five seconds we go without rather than not at all.
fn turn() -> Option<File> {
    let file = File::open(TURN).ok()?;
    for _ in 0..500 {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(10)),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

fn read_pages(file: &str) -> Option<u64> {
    fs::read_to_string(Path::new(HUGE).join(file)).ok()?.trim().parse().ok()
}

/// The PCI address that `device` begins with, domain included, or `None` for a virtual device.
pub fn pci_address(device: &str) -> Option<String> {
    let address = device.split(',').next().unwrap_or_default();
    let hex = |s: &str, max: usize| (1..=max).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_hexdigit());
    let (bus, function) = address.rsplit_once('.')?;
    let fields: Vec<&str> = bus.split(':').collect();
    if !hex(function, 1) {
        return None;
    }
    match fields[..] {
        [bus, device] if hex(bus, 2) && hex(device, 2) => Some(format!("0000:{address}")),
        [domain, bus, device] if hex(domain, 8) && hex(bus, 2) && hex(device, 2) => Some(address.to_owned()),
        _ => None,
    }
}

/// The name under which the EAL knows the port of `device`.
pub(super) fn port_name(device: &str) -> String {
    pci_address(device).unwrap_or_else(|| device.split(',').next().unwrap_or_default().to_owned())
}

/// The virtual device that is the TAP twin of interface `index`, `name` in the kernel.
pub(super) fn twin_device(index: usize, name: &str) -> String {
    format!("net_tap_twin{index},iface={name}")
}

/// The EAL's command line.
fn arguments(config: &LaunchConfig, memory: &Memory, cpus: &str) -> Vec<String> {
    let mut args = vec!["sluiced".to_owned()];
    let mut add = |parts: &[&str]| args.extend(parts.iter().map(|&part| part.to_owned()));

    // Lcore 0 is the control thread, on every CPU it may use; workers register themselves and choose their own.
    add(&["--lcores", &format!("0@({cpus})")]);
    add(&["--file-prefix", &config.file_prefix, "--no-telemetry"]);
    // Errors go to standard error; the EAL also warns of every page size that is not reserved.
    add(&["--log-level", "warning", "--log-level", "lib.eal:error"]);
    add(if memory.huge { &["--in-memory"] } else { &["--no-huge", "--no-shconf"] });
    // All of it at once, not page by page as it is asked for: what was counted as free may be gone later.
    add(&["-m", &memory.megabytes.to_string()]);
    if config.interfaces.iter().all(|i| pci_address(&i.device).is_none()) {
        add(&["--no-pci", "--iova-mode", "va"]);
    }
    // Virtual devices are made one by one afterwards, each with its own error.
    for interface in config.interfaces.iter().filter(|i| pci_address(&i.device).is_some()) {
        add(&["--allow", &interface.device]);
    }
    // net_tap complains of each optional thing that the kernel lacks; what matters comes back as an error.
    add(&["--log-level", "pmd.net.tap:critical"]);
    args.extend(config.eal_args.iter().cloned());
    args
}

/// The CPUs that this process may run on, as the kernel lists them (`0-1,4`).
pub(crate) fn allowed_cpus() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.map_or_else(|| "0".to_owned(), |list| list.trim().to_owned())
}

/// Whether `list` (`0-1,4`) names `cpu`.
pub(crate) fn cpu_in_list(list: &str, cpu: usize) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&cpu),
            _ => false,
        }
    })
}

/// `EINVAL` of Linux.
const EINVAL: c_int = 22;

/// Where the kernel counts 2 MB pages.
const HUGE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// What processes lock to count in turns: a file that all have. (Each network namespace that `ip netns exec` enters has a
/// mount of `/sys` to itself, and locks on one mount's files say nothing to another's.)
const TURN: &str = "/proc/sys/vm/nr_hugepages";

/// Size of a huge page.
const PAGE_MB: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::launch::InterfaceConfig;

    fn config(devices: &[&str]) -> LaunchConfig {
        LaunchConfig {
            workers: vec![0],
            hugepages: HugePages::Off,
            burst: 32,
            eal_args: vec!["--single-file-segments".into()],
            file_prefix: "t".into(),
            interfaces: devices
                .iter()
                .enumerate()
                .map(|(i, &device)| InterfaceConfig {
                    name: format!("if{i}"),
                    device: device.into(),
                    mtu: 1500,
                    vlan: None,
                })
                .collect(),
            conntrack_max: 1024,
            defrag: crate::api::launch::DefragConfig::default(),
            mbufs: None,
            poll: crate::poll::Poll::Auto,
            twins: true,
        }
    }

    fn line(devices: &[&str], huge: bool) -> String {
        let memory = Memory { huge, megabytes: 64, reserved: Reserved::default() };
        arguments(&config(devices), &memory, "0-1").join(" ")
    }

    #[test]
    fn pci_addresses_are_told_from_virtual_devices() {
        assert_eq!(pci_address("0000:3b:00.0").as_deref(), Some("0000:3b:00.0"));
        assert_eq!(pci_address("3b:00.1,foo=1").as_deref(), Some("0000:3b:00.1"));
        for vdev in ["net_tap0,iface=x", "net_pcap0,rx_pcap=a.b", "", ".", "3b:00", "zz:00.0", "eth0.1"] {
            assert_eq!(pci_address(vdev), None, "{vdev}");
        }
    }

    #[test]
    fn virtual_devices_need_no_pci_bus() {
        assert_eq!(
            line(&["net_null0"], false),
            "sluiced --lcores 0@(0-1) --file-prefix t --no-telemetry --log-level warning --log-level lib.eal:error \
             --no-huge --no-shconf -m 64 --no-pci --iova-mode va --log-level pmd.net.tap:critical --single-file-segments"
        );
    }

    #[test]
    fn pci_devices_are_allowed_by_name() {
        assert_eq!(
            line(&["0000:3b:00.0", "net_null0"], true),
            "sluiced --lcores 0@(0-1) --file-prefix t --no-telemetry --log-level warning --log-level lib.eal:error \
             --in-memory -m 64 --allow 0000:3b:00.0 --log-level pmd.net.tap:critical --single-file-segments"
        );
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert!(cpu_in_list("0-1,4", 0) && cpu_in_list("0-1,4", 4));
        assert!(!cpu_in_list("0-1,4", 2) && !cpu_in_list("", 0));
    }

    #[test]
    fn a_lab_of_two_interfaces_and_two_workers_takes_less_than_100_mb_and_jumbo_frames_fit_one_mbuf() {
        let mut lab = config(&["net_tap0,iface=a", "net_tap1,iface=b"]);
        lab.workers = vec![0, 1];
        assert_eq!(super::super::mempool::mbufs_needed(&lab), 16383);
        assert!(megabytes_needed(&lab, true) <= 80, "{}", megabytes_needed(&lab, true));
        assert!(megabytes_needed(&lab, false) <= 100, "{}", megabytes_needed(&lab, false));
        lab.interfaces[0].mtu = 9000;
        assert!(super::super::mempool::room(&lab) >= 128 + 9018);
    }
}
