//! Network namespaces, the TAP devices in them, and the programs that set them up.
//!
//! *Life-cycle*: a namespace goes with the last thread, process or socket in it. *Threads*: [`enter_new`] moves the calling
//! thread alone; what it makes and starts afterwards is in there. *Limits*: needs root.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Moves the calling thread into a new network namespace.
///
/// # Errors
/// The kernel's; running without root is the usual cause.
pub fn enter_new() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| io::Error::other(format!("new network namespace: {e}; be root")))
}

/// A TAP device of this namespace whose reads do not wait.
///
/// # Errors
/// The kernel's.
pub fn tap(name: &str) -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new().name(name).layer(Layer::L2).inherit_enable_state().build_sync()?;
    device.set_nonblocking(true)?;
    Ok(device)
}

/// All frames that wait in `tap`.
///
/// # Errors
/// The kernel's.
pub fn frames(tap: &SyncDevice, buffer: &mut [u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    loop {
        match tap.recv(buffer) {
            Ok(n) => all.push(buffer[..n].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(all),
            Err(e) => return Err(e),
        }
    }
}

/// Runs a program in this thread's namespace with `input`.
///
/// # Errors
/// What the program said, where it failed.
pub fn run(program: &str, arguments: &[&str], input: &str) -> io::Result<()> {
    let failed = |e: io::Error| io::Error::other(format!("{program}: {e}"));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(failed)?;
    }
    let done = child.wait_with_output().map_err(failed)?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{program}: {}\n{input}", String::from_utf8_lossy(&done.stderr))))
}
