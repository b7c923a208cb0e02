//! The test frames: UDP over IPv4, checksums right, and in the payload which frame it is and when it was sent.
//!
//! A frame's headers are made once for each flow and length; a frame costs a copy, ten additions and zeros.
//!
//! *Limits*: [`MAX_FLOWS`]. *Sources*: RFC 2544 section 9.1 (sizes), appendix C.2.2 (addresses), C.2.6.4 (UDP to port 7);
//! RFC 6985 (IMIX).

use std::fmt;
use std::str::FromStr;

use super::Mac;

/// Sizes of Ethernet frames that are to be tried, FCS included: RFC 2544 section 9.1.
pub const SIZES: [u16; 7] = [64, 128, 256, 512, 1024, 1280, 1518];

/// Most flows: each has a client of its own.
pub const MAX_FLOWS: u32 = 60_000;

/// Seven of 64 bytes, four of 570, one of 1,518, spread as evenly as twelve allow.
const IMIX: [u16; 12] = [64, 570, 64, 64, 570, 64, 1518, 64, 570, 64, 570, 64];

/// The frame check sequence, which devices make.
const FCS: u16 = 4;
const ETH: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;
const HEADERS: usize = ETH + IPV4 + UDP;
/// Trial, number and time: the shortest frame has just the room.
const STAMP: usize = 18;
/// The echo service's port.
const ECHO: u16 = 7;

/// Which frames a test is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All of so many bytes, FCS included, 64..=1518.
    Fixed(u16),
    /// 7 of 64 bytes, 4 of 570, 1 of 1,518.
    Imix,
}

impl Size {
    /// Frame lengths in their order, FCS included; over and over again.
    pub fn pattern(&self) -> &[u16] {
        match self {
            Self::Fixed(size) => std::slice::from_ref(size),
            Self::Imix => &IMIX,
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.parse() {
            _ if s.eq_ignore_ascii_case("imix") => Ok(Self::Imix),
            Ok(size @ 64..=1518) => Ok(Self::Fixed(size)),
            _ => Err("a number of bytes from 64 to 1518, or imix".into()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => size.fmt(f),
            Self::Imix => f.write_str("imix"),
        }
    }
}

/// Which way frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the clients on the first port to the servers on the second.
    Original,
    /// Back.
    Reply,
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Which trial it belongs to.
    pub trial: u16,
    /// Its number in the trial, from 0.
    pub number: u64,
    /// When it was sent, nanoseconds.
    pub sent: u64,
}

impl Stamp {
    fn bytes(self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        bytes[..2].copy_from_slice(&self.trial.to_be_bytes());
        bytes[2..10].copy_from_slice(&self.number.to_be_bytes());
        bytes[10..].copy_from_slice(&self.sent.to_be_bytes());
        bytes
    }

    /// The stamp of `frame`, where it is a test frame; translated ones are, too.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let ours = frame.get(12..14)? == [0x08, 0x00] && frame.get(ETH)? == &0x45 && frame.get(ETH + 9)? == &17;
        let udp = frame.get(ETH + IPV4..)?;
        if !ours || (udp.get(..2)? != ECHO.to_be_bytes() && udp.get(2..4)? != ECHO.to_be_bytes()) {
            return None;
        }
        let (trial, rest) = udp.get(UDP..UDP + STAMP)?.split_first_chunk::<2>()?;
        let (number, sent) = rest.split_first_chunk::<8>()?;
        Some(Self {
            trial: u16::from_be_bytes(*trial),
            number: u64::from_be_bytes(*number),
            sent: u64::from_be_bytes(sent.try_into().ok()?),
        })
    }
}

/// The headers of one flow's frames of one length.
#[derive(Clone, Debug)]
struct Template {
    headers: [u8; HEADERS],
    /// Sum of the words that UDP's checksum covers, but for the payload.
    sum: u32,
    /// Bytes without the FCS.
    length: usize,
}

/// All frames of a trial, in the order of their numbers: each next one is of the next flow.
#[derive(Clone, Debug)]
pub struct Frames {
    templates: Vec<Template>,
    kinds: u64,
    flows: u64,
}

impl Frames {
    /// Frames of `flows` flows that go `way`, from station `from` to the gateway's `to`.
    pub fn new(size: Size, flows: u32, way: Way, to: Mac, from: Mac) -> Self {
        let pattern = size.pattern();
        let of = |flow| pattern.iter().map(move |&size| Template::new(size, flow, way, to, from));
        Self {
            templates: (0..flows.clamp(1, MAX_FLOWS)).flat_map(of).collect(),
            kinds: pattern.len() as u64,
            flows: flows.clamp(1, MAX_FLOWS).into(),
        }
    }

    /// How many flows there are.
    pub const fn flows(&self) -> u64 {
        self.flows
    }

    fn template(&self, number: u64) -> &Template {
        // The pattern moves on by one when all flows have had a turn: each flow has all lengths, as often as the pattern.
        let (round, flow) = (number / self.flows, number % self.flows);
        let index = flow * self.kinds + (round + flow) % self.kinds;
        // Invariant: flows * kinds templates were made.
        &self.templates[usize::try_from(index).unwrap_or(0)]
    }

    /// Bytes of frame `number`, FCS not included.
    pub fn length(&self, number: u64) -> usize {
        self.template(number).length
    }

    /// Writes the frame of `stamp`'s number into `out`, which has its length.
    pub fn write(&self, stamp: Stamp, out: &mut [u8]) {
        let template = self.template(stamp.number);
        let payload = stamp.bytes();
        out[..HEADERS].copy_from_slice(&template.headers);
        out[HEADERS..HEADERS + STAMP].copy_from_slice(&payload);
        out[HEADERS + STAMP..].fill(0);
        let sum = match fold(template.sum + words(&payload)) {
            0xffff => 0xffff, // RFC 768: zero would mean that there is none
            sum => !sum,
        };
        out[ETH + IPV4 + 6..HEADERS].copy_from_slice(&sum.to_be_bytes());
    }
}

impl Template {
    fn new(size: u16, flow: u32, way: Way, to: Mac, from: Mac) -> Self {
        let length = size - FCS;
        let ip_length = length - 14;
        let udp_length = ip_length - 20;
        let client = (0x0a00_0002 + flow).to_be_bytes(); // 10.0.0.0/8
        let server = (0xc612_0001_u32 + flow / 1000).to_be_bytes(); // 198.18.0.0/15
        let sport = u16::try_from(1024 + flow).unwrap_or(u16::MAX);
        let (source, destination, ports) = match way {
            Way::Original => (client, server, [sport, ECHO]),
            Way::Reply => (server, client, [ECHO, sport]),
        };
        let mut headers = [0; HEADERS];
        headers[..6].copy_from_slice(&to);
        headers[6..12].copy_from_slice(&from);
        headers[12..ETH].copy_from_slice(&[0x08, 0x00]);
        let ip = &mut headers[ETH..ETH + IPV4];
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&ip_length.to_be_bytes());
        (ip[8], ip[9]) = (64, 17);
        ip[12..16].copy_from_slice(&source);
        ip[16..].copy_from_slice(&destination);
        let sum = !fold(words(ip));
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let addresses = words(&ip[12..]);
        let udp = &mut headers[ETH + IPV4..];
        udp[..2].copy_from_slice(&ports[0].to_be_bytes());
        udp[2..4].copy_from_slice(&ports[1].to_be_bytes());
        udp[4..6].copy_from_slice(&udp_length.to_be_bytes());
        let sum = addresses + 17 + u32::from(udp_length) + words(udp);
        Self { headers, sum, length: length.into() }
    }
}

/// Sum of the 16-bit words of `bytes`, an even number of them.
fn words(bytes: &[u8]) -> u32 {
    bytes.as_chunks::<2>().0.iter().map(|w| u32::from(u16::from_be_bytes(*w))).sum()
}

/// The one's complement sum in 16 bits.
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    u16::try_from(twice).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const TO: Mac = [2, 0, 0, 0, 1, 1];
    const FROM: Mac = [2, 0, 0, 0, 0, 10];

    fn frame(frames: &Frames, stamp: Stamp) -> Vec<u8> {
        let mut out = vec![0xaa; frames.length(stamp.number)];
        frames.write(stamp, &mut out);
        out
    }

    #[test]
    fn the_checksums_of_every_frame_verify_and_its_stamp_reads_as_written() {
        for size in SIZES.map(Size::Fixed).into_iter().chain([Size::Imix]) {
            for way in [Way::Original, Way::Reply] {
                let frames = Frames::new(size, 100, way, TO, FROM);
                for number in (0..500).chain([u64::from(u32::MAX), u64::MAX / 2]) {
                    let stamp = Stamp { trial: 7, number, sent: number.wrapping_mul(0x9e37_79b9_7f4a_7c15) };
                    let frame = frame(&frames, stamp);
                    let udp_length = u16::try_from(frame.len() - 34).expect("a frame");
                    assert_eq!(fold(words(&frame[14..34])), 0xffff, "IPv4 of {number}");
                    assert_eq!(fold(words(&frame[26..]) + 17 + u32::from(udp_length)), 0xffff, "UDP of {number}");
                    assert_ne!(frame[40..42], [0, 0], "there is a checksum");
                    assert_eq!(Stamp::of(&frame), Some(stamp));
                }
            }
        }
    }

    #[test]
    fn a_frame_has_its_size_without_the_fcs() {
        for size in SIZES {
            let frames = Frames::new(Size::Fixed(size), 1, Way::Original, TO, FROM);
            let frame = frame(&frames, Stamp { trial: 0, number: 3, sent: 0 });
            assert_eq!(frame.len() + 4, usize::from(size));
            assert_eq!(usize::from(u16::from_be_bytes([frame[16], frame[17]])) + 14, frame.len());
        }
    }

    #[test]
    fn imix_is_seven_short_four_middle_and_one_long_for_any_number_of_flows() {
        for flows in [1, 6, 12, 100] {
            let frames = Frames::new(Size::Imix, flows, Way::Original, TO, FROM);
            let lengths: Vec<_> = (0..12 * u64::from(flows)).map(|n| frames.length(n)).collect();
            let count = |size: usize| lengths.iter().filter(|&&l| l + 4 == size).count();
            let flows = flows as usize;
            assert_eq!((count(64), count(570), count(1518)), (7 * flows, 4 * flows, flows));
            let of_first_flow: HashSet<_> = lengths.iter().step_by(flows).collect();
            assert_eq!(of_first_flow.len(), 3, "a flow of {flows} has all sizes");
        }
    }

    #[test]
    fn a_reply_is_the_original_turned_round_and_flows_are_distinct() {
        let size = Size::Fixed(64);
        let originals = Frames::new(size, MAX_FLOWS, Way::Original, TO, FROM);
        let replies = Frames::new(size, MAX_FLOWS, Way::Reply, TO, FROM);
        let mut seen = HashSet::new();
        for number in 0..originals.flows() {
            let stamp = Stamp { trial: 1, number, sent: 2 };
            let (o, r) = (frame(&originals, stamp), frame(&replies, stamp));
            assert_eq!(
                (&o[26..30], &o[30..34], &o[34..36], &o[36..38]),
                (&r[30..34], &r[26..30], &r[36..38], &r[34..36])
            );
            assert!(seen.insert(o[26..38].to_vec()));
        }
    }

    #[test]
    fn what_is_no_test_frame_has_no_stamp() {
        let frames = Frames::new(Size::Fixed(64), 1, Way::Original, TO, FROM);
        let good = frame(&frames, Stamp { trial: 0, number: 0, sent: 0 });
        for cut in 0..good.len() {
            assert_eq!(Stamp::of(&good[..cut]).is_some(), cut >= HEADERS + STAMP, "{cut} bytes");
        }
        for at in [12, 14, 23, 37] {
            let mut other = good.clone();
            other[at] ^= 1;
            assert_eq!(Stamp::of(&other), None, "byte {at}");
        }
    }

    #[test]
    fn sizes_read_as_they_are_written() {
        assert_eq!("IMIX".parse(), Ok(Size::Imix));
        assert_eq!("64".parse(), Ok(Size::Fixed(64)));
        for size in SIZES.map(Size::Fixed).into_iter().chain([Size::Imix]) {
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for bad in ["63", "1519", "", "jumbo", "-64"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }
}
