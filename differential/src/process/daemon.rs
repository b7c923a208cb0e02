//! Starting `sluiced` and stopping it again.
//!
//! *Life-cycle*: its directory holds configuration, socket and log; both go with the value. Should this program be killed,
//! the kernel kills `sluiced` with it. *Limits*: it must answer within [`READY`].

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::api::Api;
use crate::frame::Side;
use crate::policy::Policy;

/// How long it may take to answer.
const READY: Duration = Duration::from_secs(60);

/// How long it may take to end.
const END: Duration = Duration::from_secs(5);

/// A `sluiced` of this program's.
pub struct Daemon {
    child: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// Starts it in the calling thread's network namespace and waits until it answers.
    ///
    /// # Errors
    /// What it said when it did not start.
    pub fn start(sluiced: &Path, policy: &Policy, workers: usize) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("sluice-differential-").tempdir()?;
        let head = format!(
            "dataplane: {{workers: {:?}, hugepages: off}}\ncontrol: {{socket: {}}}",
            cpus(workers)?,
            directory.path().join("socket").display()
        );
        let device = |n: usize, side: Side| {
            // A TAP's address is the far end's; the gateway takes the one that differs in the second byte.
            let mut mac = side.router_mac();
            mac[1] ^= 0xff;
            let mac = mac.map(|b| format!("{b:02x}")).join(":");
            format!("net_tap{n},iface=d{},mac={mac}", side.name())
        };
        let devices = [device(0, Side::Lan), device(1, Side::Wan)];
        let config = directory.path().join("sluice.yaml");
        fs::write(&config, policy.yaml(&head, [&devices[0], &devices[1]]))?;
        let log = File::create(directory.path().join("log"))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(sluiced)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|e| io::Error::other(format!("{}: {e}", sluiced.display())))?;
        let mut daemon = Self { child, directory };
        daemon.ready()?;
        Ok(daemon)
    }

    /// Its control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    /// Waits until it answers.
    fn ready(&mut self) -> io::Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            if Api::connect(&self.socket()).and_then(|mut api| api.get("/v1/status")).is_ok() {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
                return Err(io::Error::other(format!("sluiced did not start:\n{log}")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let deadline = Instant::now() + END;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The last `n` CPUs that this program may use.
fn cpus(n: usize) -> io::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut all: Vec<usize> = (0..CpuSet::count()).filter(|&c| allowed.is_set(c).unwrap_or(false)).collect();
    if all.len() < n {
        return Err(io::Error::other(format!("{n} workers need as many CPUs; there are {}", all.len())));
    }
    Ok(all.split_off(all.len() - n))
}
