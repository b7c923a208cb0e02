//! [`Runtime`]: everything of DPDK that a run of the dataplane holds, started and stopped in the right order.
//!
//! *Life-cycle*: EAL, pool, ports, workers' threads; and back in reverse. [`Runtime::stop`] is the orderly end; dropping
//! does the same and tells nobody. *Threads*: control thread.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::eal::{self, Eal, Memory, Reserved};
use super::io::{DpdkIo, Slot, SpinLock, TxQueue};
use super::lcore::{self, Lcore, WorkerLoop};
use super::mempool::{self, Pool};
use super::port::{OpenError, Port, Setup, TAP};
use crate::api::command::{Command, Message};
use crate::api::launch::{
    DpdkError, InterfaceConfig, LaunchConfig, LaunchError, Link, PortInfo, StopError, StopReport, WorkerSeat,
};
use crate::api::stats::WorkerStats;
use crate::poll::BackOff;
use crate::time::Clock;

/// The running dataplane's resources.
#[derive(Debug)]
pub struct Runtime {
    workers: Vec<Thread>,
    /// By interface: the wire's port, and its twin's.
    ports: Vec<(Port, Option<Port>)>,
    /// `None` once closed.
    pool: Option<Arc<Pool>>,
    /// Goes back when all else is gone.
    _reserved: Reserved,
}

#[derive(Debug)]
struct Thread {
    commands: Sender<Command>,
    handle: JoinHandle<()>,
}

/// What starting gives beside the runtime.
#[derive(Debug)]
pub struct Started {
    /// To keep, and to stop by.
    pub runtime: Runtime,
    /// The wire ports.
    pub ports: Vec<PortInfo>,
    /// By worker index.
    pub workers: Vec<(Sender<Command>, Arc<WorkerStats>)>,
    /// From all workers.
    pub messages: Receiver<Message>,
    /// Whether packet memory is in huge pages.
    pub hugepages: bool,
    /// What the operator should know.
    pub notes: Vec<String>,
}

impl Started {
    /// Opens the ports and starts the workers.
    fn bring_up<L: WorkerLoop>(
        &mut self,
        config: &LaunchConfig,
        pool: Arc<Pool>,
        messages: &Sender<Message>,
        mut build: impl FnMut(WorkerSeat) -> L,
    ) -> Result<(), LaunchError> {
        let workers = config.workers.len();
        let count = u16::try_from(workers).map_err(|_| LaunchError::Workers { count: workers })?;
        for (index, interface) in config.interfaces.iter().enumerate() {
            let (wire, twin, mac) = open(config, count, index, interface, &pool)?;
            for port in [Some(&wire), twin.as_ref()].into_iter().flatten() {
                let driver = port.driver();
                self.notes.extend(port.notes().iter().map(|n| format!("interface {} ({driver}): {n}", interface.name)));
            }
            let (rss, rx_checksums) = (wire.rss(), wire.rx_checksums());
            self.ports.push(PortInfo { driver: wire.driver().to_owned(), mac, rss, rx_checksums });
            self.runtime.ports.push((wire, twin));
        }

        let mut loops = Vec::new();
        for (index, io) in self.runtime.queues(count, &pool).into_iter().enumerate() {
            let (sender, commands) = bounded(COMMANDS);
            let stats = Arc::new(WorkerStats::new(config.interfaces.len()));
            self.workers.push((sender.clone(), Arc::clone(&stats)));
            let (messages, ports) = (messages.clone(), self.ports.clone());
            loops.push((sender, build(WorkerSeat { index, workers, io, commands, messages, stats, ports })));
        }
        self.runtime.spawn(config, loops)
    }
}

impl Runtime {
    /// Starts all; `build` makes each worker, in order, on the calling thread.
    pub fn start<L: WorkerLoop>(
        config: &LaunchConfig,
        build: impl FnMut(WorkerSeat) -> L,
    ) -> Result<Started, LaunchError> {
        let (mut memory, note) = Memory::choose(config)?;
        let hugepages = memory.huge;
        let eal = Eal::start(config, &memory)?;
        memory.reserved.taken();
        let pool = Arc::new(Pool::new(eal, mempool::mbufs_needed(config), mempool::room(config))?);
        let runtime =
            Self { workers: Vec::new(), ports: Vec::new(), pool: Some(Arc::clone(&pool)), _reserved: memory.reserved };
        let (messages_in, messages) = bounded(MESSAGES);
        let mut started = Started {
            runtime,
            ports: Vec::new(),
            workers: Vec::new(),
            messages,
            hugepages,
            notes: Vec::from_iter(note),
        };
        // What fails from here on is undone by the runtime's Drop, when `bring_up` has let go of the pool.
        started.bring_up(config, pool, &messages_in, build)?;
        Ok(started)
    }

    /// Each worker's queue pairs.
    fn queues(&self, workers: u16, pool: &Arc<Pool>) -> Vec<DpdkIo> {
        let all: Vec<Option<&Port>> = self.ports.iter().flat_map(|(wire, twin)| [Some(wire), twin.as_ref()]).collect();
        // Where there are fewer transmit queues than workers, each queue has a lock.
        let locks: Vec<Vec<Arc<SpinLock>>> = all
            .iter()
            .map(|port| {
                let queues = port.map_or(0, |port| port.queues().1);
                (0..queues).filter(|_| queues < workers).map(|_| Arc::default()).collect()
            })
            .collect();
        let slot = |worker: u16, port: Option<&Port>, locks: &[Arc<SpinLock>]| {
            let Some(port) = port else { return Slot::default() };
            let (rx, tx) = port.queues();
            let queue = worker % tx;
            Slot {
                port: port.id(),
                rx: (worker < rx).then_some(worker),
                tx: Some(TxQueue { queue, shared: locks.get(usize::from(queue)).map(Arc::clone) }),
            }
        };
        (0..workers)
            .map(|worker| DpdkIo {
                slots: all.iter().zip(&locks).map(|(port, locks)| slot(worker, *port, locks)).collect(),
                pool: Arc::clone(pool),
            })
            .collect()
    }

    /// Starts the threads; all run, or none does.
    fn spawn<L: WorkerLoop>(
        &mut self,
        config: &LaunchConfig,
        loops: Vec<(Sender<Command>, L)>,
    ) -> Result<(), LaunchError> {
        let clock = Clock::start();
        let software = config.interfaces.iter().all(|i| eal::pci_address(&i.device).is_none());
        let back_off = BackOff::new(config.poll, software);
        let (ready, all_ready) = bounded(loops.len());
        let (go, gate) = bounded::<()>(loops.len());
        for (worker, (commands, mut work)) in loops.into_iter().enumerate() {
            let cpu = config.workers[worker];
            let (ready, gate) = (ready.clone(), gate.clone());
            let body = move || {
                let lcore = match Lcore::register(worker, cpu) {
                    Ok(lcore) => lcore,
                    Err(e) => return drop(ready.send(Err(e))),
                };
                let announced = ready.send(Ok(()));
                if announced.is_ok() && gate.recv().is_ok() {
                    lcore::run(&mut work, clock, back_off);
                }
                // Frames that the worker still holds go back through this lcore's cache.
                drop(work);
                drop(lcore);
            };
            let handle = thread::Builder::new().name(format!("sluice-w{worker}")).spawn(body).map_err(|e| {
                let errno = e.raw_os_error().unwrap_or(0);
                let source = DpdkError { call: "pthread_create", errno, text: e.to_string() };
                LaunchError::Thread { worker, cpu, source }
            })?;
            self.workers.push(Thread { commands, handle });
        }
        drop(ready);
        for _ in 0..self.workers.len() {
            // Every thread says one word; a channel closed early would mean that one ended without, so nobody waits.
            all_ready.recv().unwrap_or(Ok(()))?;
        }
        for _ in 0..self.workers.len() {
            // The channel has room for all.
            let _ = go.send(());
        }
        Ok(())
    }

    /// Carrier and speed of interface `interface`'s wire; `None` where there is no such interface.
    pub fn link(&self, interface: usize) -> Option<Link> {
        self.ports.get(interface).map(|(wire, _)| wire.link())
    }

    /// Ends the workers, closes the ports, frees the pool, cleans the EAL up.
    ///
    /// # Errors
    /// A worker panicked; the rest is closed all the same.
    pub fn stop(mut self) -> Result<StopReport, StopError> {
        self.shut()
    }

    fn shut(&mut self) -> Result<StopReport, StopError> {
        let mut report = StopReport::default();
        let mut panicked = None;
        for thread in &self.workers {
            // A full channel empties at the worker's next turn; a worker that is gone has no use for the command.
            while !thread.handle.is_finished()
                && matches!(
                    thread.commands.send_timeout(Command::Stop, Duration::from_millis(20)),
                    Err(crossbeam_channel::SendTimeoutError::Timeout(_))
                )
            {}
        }
        for (worker, thread) in self.workers.drain(..).enumerate() {
            if thread.handle.join().is_err() {
                panicked.get_or_insert(worker);
            }
        }
        for (wire, twin) in self.ports.drain(..).rev() {
            for port in [twin, Some(wire)].into_iter().flatten() {
                let driver = port.driver().to_owned();
                if let Err(e) = port.close() {
                    report.notes.push(format!("{driver}: {e}"));
                }
            }
        }
        if let Some(Err(mbufs)) = self.pool.take().map(Pool::close) {
            report.leaked_mbufs = mbufs;
        }
        match panicked {
            Some(worker) => Err(StopError::WorkerPanicked { worker }),
            None => Ok(report),
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // After `stop` there is nothing left to do; without it, nobody is there to hear the report.
        let _ = self.shut();
    }
}

/// Opens the ports of one interface; also the MAC address that the gateway has there.
fn open(
    config: &LaunchConfig,
    workers: u16,
    index: usize,
    interface: &InterfaceConfig,
    pool: &Pool,
) -> Result<(Port, Option<Port>, [u8; 6]), LaunchError> {
    let name = interface.name.clone();
    let wire = Port::open(
        &Setup {
            device: &interface.device,
            workers,
            descriptors: mempool::descriptors(interface),
            mtu: interface.mtu,
            mac: None,
        },
        pool,
    )
    .map_err(|e| match e {
        OpenError::Device(source) => {
            LaunchError::Device { interface: name.clone(), device: interface.device.clone(), source }
        }
        OpenError::NoQueue(kind) => LaunchError::NoQueue { interface: name.clone(), kind },
        OpenError::Mtu(most) => LaunchError::Mtu { interface: name.clone(), mtu: interface.mtu, most },
        OpenError::Dpdk(source) => LaunchError::Port { interface: name.clone(), source },
    })?;

    let mac = gateway_mac(&wire);
    if !config.twins {
        return Ok((wire, None, mac.unwrap_or_default()));
    }
    let twin = Port::open(
        &Setup {
            device: &eal::twin_device(index, &name),
            workers,
            descriptors: mempool::SOFTWARE_DESCRIPTORS,
            mtu: interface.mtu,
            mac,
        },
        pool,
    )
    .map_err(|e| match e {
        OpenError::Device(source) => LaunchError::Twin { interface: name.clone(), source },
        OpenError::NoQueue(kind) => LaunchError::NoQueue { interface: name.clone(), kind },
        OpenError::Mtu(most) => LaunchError::Mtu { interface: name.clone(), mtu: interface.mtu, most },
        OpenError::Dpdk(source) => LaunchError::Port { interface: name.clone(), source },
    })?;
    let mac = mac.unwrap_or(twin.mac());
    Ok((wire, Some(twin), mac))
}

/// The address that the gateway answers to on `wire`: the device's own where it has one. A TAP as wire shares its address
/// with its kernel side, which is the *other* end of the cable here: the gateway takes a neighbouring one.
fn gateway_mac(wire: &Port) -> Option<[u8; 6]> {
    let mut mac = wire.mac();
    if mac == [0; 6] {
        return None;
    }
    if wire.driver() == TAP {
        mac[0] = (mac[0] | 0x02) & !0x01;
        mac[1] ^= 0xff;
    }
    Some(mac)
}

/// Commands that may wait for one worker.
const COMMANDS: usize = 1024;

/// Messages that may wait for control.
const MESSAGES: usize = 4096;
