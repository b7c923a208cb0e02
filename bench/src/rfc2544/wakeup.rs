//! How late an idle gateway is: single packets after gaps, which `dataplane.poll` lets it sleep through.
//!
//! *Life-cycle*, *Threads*: as [`super::run`].

use std::io::Write;

use dataplane::api::Nanos;

use super::connection::{Connection, ConnectionArgs};
use super::frame::{Size, Way};
use super::generator::{Outcome, Trial};
use super::{Error, micros};

/// The columns that [`run`] prints.
pub const COLUMNS: &str = "gap_us\tcount\tlost\tp50_us\tp99_us\tmax_us";

/// What to measure, and with what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Packets per second: one by one.
    #[arg(long, value_delimiter = ',', default_value = "10000,1000,100,10", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rates: Vec<u64>,
    /// Packets at each rate.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// Sends single packets, printing a line for each gap between them to `out`.
///
/// # Errors
/// Why there is no measurement.
pub fn run(args: &Args, out: &mut impl Write) -> Result<(), Error> {
    let connection = Connection::open(&args.connection)?;
    let result = measure(args, &connection, out);
    connection.close();
    result
}

fn measure(args: &Args, connection: &Connection, out: &mut impl Write) -> Result<(), Error> {
    writeln!(out, "{COLUMNS}")?;
    for &rate in &args.rates {
        connection.learn(1)?;
        // Long enough for the last one to fall due.
        let duration = Nanos::from_secs(args.count / rate + 2);
        let trial = connection.trial(Size::Fixed(64), 1, Way::Original, Some(rate), duration);
        let outcome = connection.run(Trial { count: args.count, ..trial })?;
        writeln!(out, "{}", line(rate, &outcome))?;
        out.flush()?;
    }
    Ok(())
}

fn line(rate: u64, outcome: &Outcome) -> String {
    let Outcome { tally, times, .. } = outcome;
    let [p50, p99, max] =
        [times.value_at_quantile(0.5), times.value_at_quantile(0.99), times.max()].map(|ns| micros(times, ns));
    format!("{}\t{}\t{}\t{p50}\t{p99}\t{max}", 1_000_000 / rate, tally.offered, tally.lost())
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::rfc2544::search::Tally;

    #[test]
    fn a_line_has_a_value_for_each_column() {
        let mut times = Histogram::new_with_bounds(1, 10_000_000_000, 3).expect("bounds");
        times.saturating_record(120_000);
        let tally = Tally { wanted: 2, offered: 2, received: 1, elapsed: 1 };
        let text = line(100, &Outcome { tally, refused: 0, times });
        assert_eq!(text, "10000\t2\t1\t120.1\t120.1\t120.1");
        assert_eq!(text.split('\t').count(), COLUMNS.split('\t').count());
    }
}
