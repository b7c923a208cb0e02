//! RFC 2544 between this process and a gateway in another: throughput, latency and loss by frame size.
//!
//! ```text
//!   generator, lan port == memif == lan [ sluiced ] wan == memif == wan port, generator
//! ```
//! *Throughput* (section 26.1): the highest rate at which no frame is lost, by halving. *Latency* (26.2): of a sample of all
//! frames, at 10, 50 and 90 % of that rate; percentiles instead of one mean. *Loss* (26.3): at 100 % of it, so that a rate
//! which only just passed shows. Frames go one way and belong to flows that the gateway knows: they are sent once in
//! each direction before.
//!
//! [`wakeup`] sends single packets through the same connection, to see how late an idle gateway is.
//!
//! *Life-cycle*: [`run`] once per process, for DPDK starts once. *Threads*: the caller's searches and prints, [`generator`]
//! sends. *Sources*: RFC 2544.

pub mod connection;
pub mod frame;
pub mod gateway;
pub mod generator;
pub mod search;
pub mod wakeup;

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use dataplane::api::Nanos;
use dataplane::api::launch::LaunchError;
use hdrhistogram::Histogram;

use self::connection::{Connection, ConnectionArgs, LINK_UP, seconds, within};
use self::frame::{MAX_FLOWS, Size, Way};
use self::gateway::{Gateway, Quantiles};
use self::generator::{Outcome, Trial};
use self::search::Terms;

/// A MAC address.
pub type Mac = [u8; 6];

/// The columns that [`run`] prints.
pub const COLUMNS: &str = "size\tload_percent\tmpps\tloss\tp50_us\tp99_us\tp999_us\tmax_us";

/// The columns of `--box`.
const BOX_COLUMNS: &str = "size\tload_percent\ttime\tcount\tp50_us\tp99_us\tp999_us\tmax_us";

/// Percents of the throughput at which the latency is measured, and the loss at last.
const LOADS: [u64; 4] = [10, 50, 90, 100];

/// What to measure, and with what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Frame sizes, FCS included, and imix.
    #[arg(long, value_delimiter = ',', default_value = "64,128,256,512,1024,1280,1518,imix")]
    sizes: Vec<Size>,
    /// Seconds for each trial; RFC 2544 asks for 60 at least.
    #[arg(long, default_value_t = 60.0)]
    trial: f64,
    /// Largest distance between the rate found and one that lost frames, as a part of it.
    #[arg(long, default_value_t = 0.01)]
    resolution: f64,
    /// Part of the frames that may be lost; 0 for RFC 2544.
    #[arg(long, default_value_t = 0.0)]
    tolerance: f64,
    /// Tries for a rate that lost frames, after the first; 0 for RFC 2544, more where machines are shared.
    #[arg(long, default_value_t = 0)]
    retries: u32,
    /// Flows.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_FLOWS)))]
    flows: u32,
    /// One of so many frames is timed.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    sample: u64,
    /// The gateway's control socket: its own latency is asked for at each load, and written to the file of --box.
    #[arg(long, requires = "box_file")]
    control: Option<PathBuf>,
    /// Where to write what the gateway says.
    #[arg(long = "box", value_name = "FILE", requires = "control")]
    box_file: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Why a measurement did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument out of its range.
    #[error("--{name} {value}: {accepted}")]
    Argument {
        /// Which.
        name: &'static str,
        /// What was given.
        value: f64,
        /// What may be.
        accepted: &'static str,
    },
    /// DPDK or a device.
    #[error("{0}{1}")]
    Launch(LaunchError, String),
    /// A link without a carrier.
    #[error("the {0} link did not come up within {secs} s: is the gateway there?", secs = LINK_UP.as_secs())]
    Link(&'static str),
    /// The gateway does not forward what it should.
    #[error("the gateway forwards {received} of {offered} frames {way}: do its addresses, routes and policy fit?")]
    Learning {
        /// Which way.
        way: &'static str,
        /// How many came out.
        received: u64,
        /// How many were sent.
        offered: u64,
    },
    /// The generator's thread has ended.
    #[error("the generator has ended")]
    Generator,
    /// The control socket, or a file.
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    /// Standard output.
    #[error("cannot write: {0}")]
    Output(#[from] io::Error),
}

/// Measures all sizes, printing a line for each load to `out` and what goes on to standard error.
///
/// # Errors
/// Why there is no measurement.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Error> {
    let terms = Terms {
        resolution: within("resolution", args.resolution, 0.0001, 0.5, "a part from 0.0001 to 0.5")?,
        tolerance: within("tolerance", args.tolerance, 0.0, 0.5, "a part from 0 to 0.5")?,
        retries: args.retries,
    };
    let duration = seconds("trial", args.trial)?;
    let bench = Bench { args, terms, duration, connection: Connection::open(&args.connection)? };
    let result = bench.measure(out);
    bench.connection.close();
    result
}

/// What is measured with what.
struct Bench<'a> {
    args: &'a Args,
    terms: Terms,
    duration: Nanos,
    connection: Connection,
}

impl Bench<'_> {
    fn measure(&self, out: &mut impl Write) -> Result<(), Error> {
        let mut boxes = match &self.args.box_file {
            Some(file) => Some(File::create(file).map_err(|e| Error::File(file.clone(), e))?),
            None => None,
        };
        if let Some(file) = &mut boxes {
            writeln!(file, "{BOX_COLUMNS}")?;
        }
        writeln!(out, "{COLUMNS}")?;
        for &size in &self.args.sizes {
            self.measure_size(size, out, boxes.as_mut())?;
        }
        Ok(())
    }

    fn measure_size(&self, size: Size, out: &mut impl Write, mut boxes: Option<&mut File>) -> Result<(), Error> {
        self.connection.learn(self.args.flows)?;
        let found = search::throughput(self.terms, |rate| self.trial(size, rate).map(|o| o.tally))?;
        if found.generator {
            eprintln!("{size}: the generator is the limit, not the gateway");
        }
        if found.rate == 0 {
            eprintln!("{size}: no rate of {} frames per second or more passed", search::LOWEST);
        }
        for load in LOADS {
            let rate = u128::from(found.rate) * u128::from(load) / 100;
            let rate = u64::try_from(rate).unwrap_or(u64::MAX);
            if rate == 0 {
                writeln!(out, "{size}\t{load}\t0.000\t-\t-\t-\t-\t-")?;
                continue;
            }
            let gateway = self.args.control.as_deref().map(Gateway::at);
            let refused = |e| Error::File(self.args.control.clone().unwrap_or_default(), e);
            gateway.iter().try_for_each(Gateway::reset).map_err(refused)?;
            let outcome = self.trial(size, Some(rate))?;
            writeln!(out, "{}", line(size, load, &outcome))?;
            out.flush()?;
            if let (Some(gateway), Some(file)) = (gateway, &mut boxes) {
                for (time, q) in ["packet", "burst"].into_iter().zip(gateway.latency().map_err(refused)?) {
                    writeln!(file, "{}", box_line(size, load, time, &q))?;
                }
            }
        }
        Ok(())
    }

    fn trial(&self, size: Size, rate: Option<u64>) -> Result<Outcome, Error> {
        let trial = self.connection.trial(size, self.args.flows, Way::Original, rate, self.duration);
        let outcome = self.connection.run(Trial { sample: self.args.sample, ..trial })?;
        let Outcome { tally, refused, .. } = &outcome;
        let asked = rate.map_or("flat out".to_owned(), |r| format!("{:.3} Mpps", mega(r)));
        let late = if tally.on_time() { "" } else { ", the generator was late" };
        let lost = tally.lost();
        eprintln!(
            "{size}, {asked}: {:.3} Mpps offered, {lost} of {} lost ({refused} found no room){late}",
            mega(tally.rate()),
            tally.offered
        );
        Ok(outcome)
    }
}

fn mega(rate: u64) -> f64 {
    rate as f64 / 1e6
}

/// `ns` as microseconds, where `times` has any.
fn micros(times: &Histogram<u64>, ns: u64) -> String {
    if times.is_empty() { "-".into() } else { format!("{:.1}", ns as f64 / 1e3) }
}

fn line(size: Size, load: u64, outcome: &Outcome) -> String {
    let Outcome { tally, times, .. } = outcome;
    let at = |quantile: f64| micros(times, times.value_at_quantile(quantile));
    let (p50, p99, p999, max) = (at(0.5), at(0.99), at(0.999), micros(times, times.max()));
    format!("{size}\t{load}\t{:.3}\t{:.6}\t{p50}\t{p99}\t{p999}\t{max}", mega(tally.rate()), tally.loss())
}

fn box_line(size: Size, load: u64, time: &str, q: &Quantiles) -> String {
    let [p50, p99, p999, max] = q.us;
    format!("{size}\t{load}\t{time}\t{}\t{p50:.1}\t{p99:.1}\t{p999:.1}\t{max:.1}", q.count)
}

#[cfg(test)]
mod tests {
    use super::search::Tally;
    use super::*;

    #[test]
    fn a_line_has_a_value_for_each_column() {
        let mut times = hdrhistogram::Histogram::new_with_bounds(1, generator::LONGEST, 3).expect("bounds");
        (1..=1000).for_each(|n| times.saturating_record(n * 1000));
        let tally = Tally { wanted: 2000, offered: 2000, received: 1999, elapsed: 1_000_000 };
        let outcome = Outcome { tally, refused: 0, times };
        let text = line(Size::Imix, 50, &outcome);
        assert_eq!(text, "imix\t50\t2.000\t0.000500\t500.2\t990.2\t999.4\t1000.4");
        assert_eq!(text.split('\t').count(), COLUMNS.split('\t').count());
        let none = Outcome { times: hdrhistogram::Histogram::new(3).expect("digits"), ..outcome };
        assert_eq!(line(Size::Fixed(64), 100, &none), "64\t100\t2.000\t0.000500\t-\t-\t-\t-");
        let q = Quantiles { count: 3, us: [1.0, 2.0, 3.0, 4.5] };
        assert_eq!(box_line(Size::Fixed(64), 10, "burst", &q).split('\t').count(), BOX_COLUMNS.split('\t').count());
    }
}
