//! FTP's control connection: which commands and replies announce a data connection, and how they are written.
//!
//! ```text
//!   PORT h1,h2,h3,h4,p1,p2          227 … h1,h2,h3,h4,p1,p2 …        RFC 959; brackets or none, RFC 1123 section 4.1.2.6
//!   EPRT |1|address|port|           229 … (|||port|)                 RFC 2428
//! ```
//! A [`Parser`] reads one direction as a stream, byte after byte: how segments cut it makes no difference, and several
//! commands in one segment are several commands. Only what stands at the beginning of a line counts. It begins in the
//! middle of an unknown line: the first segment of a connection announces nothing, as in Linux.
//!
//! *Threads*: any; text in, text out. *Limits*: an argument of [`ARGUMENT`] bytes; longer ones announce nothing.
//! *Sources*: RFC 959, RFC 1123, RFC 2428; `linux/net/netfilter/nf_conntrack_ftp.c` for what it takes and what not.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arrayvec::{ArrayString, ArrayVec};

use super::seqadj::{TEXT, Text};

/// Longest argument; the longest that means anything has 55 bytes. With the byte that ends it, it fits a [`Text`].
pub const ARGUMENT: usize = TEXT - 1;

/// The beginning of a line: its word, what stands before the argument, and the argument, as far as they matter.
pub type Line = ArrayVec<u8, { WORD + 1 + ARGUMENT }>;

/// Longest word, with the blank behind it.
const WORD: usize = 5;

/// Which command or reply it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The client listens: IPv4.
    Port,
    /// The client listens: either version.
    Eprt,
    /// The server listens: IPv4.
    Pasv,
    /// The server listens: at the address that it is known by.
    Epsv,
}

/// Where a data connection will be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// How it was said.
    pub form: Form,
    /// `None` where the form has no address.
    pub address: Option<IpAddr>,
    /// Never 0.
    pub port: u16,
}

/// An argument has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its bytes, and the byte behind it that ended it.
    pub text: Text,
    /// What it says; `None` where it was none.
    pub announcement: Option<Announcement>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// In the word that a line begins with.
    Word,
    /// Before an argument.
    Before(Form),
    /// In one.
    Argument(Form),
    /// Nothing matters up to the next line.
    Rest,
}

/// One direction of a control connection.
#[derive(Clone, Debug)]
pub struct Parser {
    replies: bool,
    at: At,
    /// The line's first word with the blank behind it, as far as it was read.
    word: ArrayVec<u8, WORD>,
    argument: ArrayVec<u8, ARGUMENT>,
}

impl Parser {
    /// For commands, or for replies; in the middle of an unknown line.
    pub fn new(replies: bool) -> Self {
        Self { replies, at: At::Rest, word: ArrayVec::new(), argument: ArrayVec::new() }
    }

    /// The same, within a line that began with `line`, as [`Self::line`] gave it.
    pub fn within(replies: bool, line: &Line) -> Self {
        let mut parser = Self { at: At::Word, ..Self::new(replies) };
        parser.read(line);
        parser
    }

    /// The line that has begun; `None` where nothing follows from it.
    pub fn line(&self) -> Option<Line> {
        let (bracket, argument) = match self.at {
            At::Rest => return None,
            At::Word | At::Before(_) => (false, &[][..]),
            At::Argument(form) => (form == Form::Epsv, &self.argument[..]),
        };
        Some(self.word.iter().copied().chain(bracket.then_some(b'(')).chain(argument.iter().copied()).collect())
    }

    /// Reads on, up to and with the byte behind the next argument's end. Gives how many bytes it has read; all of them
    /// where no argument ends in them.
    pub fn read(&mut self, text: &[u8]) -> (usize, Option<Ended>) {
        for (n, &b) in text.iter().enumerate() {
            if let Some(ended) = self.byte(b) {
                return (n + 1, Some(ended));
            }
        }
        (text.len(), None)
    }

    /// Bytes of the argument that has begun and not ended; 0 where none has.
    pub fn unfinished(&self) -> usize {
        if matches!(self.at, At::Argument(_)) { self.argument.len() } else { 0 }
    }

    /// Some bytes are missing: what comes next stands in the middle of an unknown line.
    pub fn lose(&mut self) {
        self.at = At::Rest;
    }

    fn byte(&mut self, b: u8) -> Option<Ended> {
        let At::Argument(form) = self.at else {
            self.outside(b);
            return None;
        };
        if self.goes_on(form, b) {
            return None;
        }
        let ends = match form {
            Form::Port | Form::Eprt => matches!(b, b'\r' | b'\n'),
            Form::Pasv => true,
            Form::Epsv => b == b')',
        };
        let announcement = if ends { parse(form, &self.argument) } else { None };
        let mut text: Text = self.argument.iter().copied().collect();
        text.push(b); // the argument is shorter than a text
        // A reply's text may hold numbers and brackets of its own in front.
        let again = announcement.is_none() && matches!(form, Form::Pasv | Form::Epsv);
        self.at = if again { At::Before(form) } else { At::Rest };
        // The byte that found no room has ended this argument: it does not begin the next one, too.
        if !self.argument.is_full() || b == b'\n' {
            self.outside(b);
        }
        Some(Ended { text, announcement })
    }

    /// Takes a byte of an argument; `false` where it is none.
    fn goes_on(&mut self, form: Form, b: u8) -> bool {
        let belongs = match form {
            Form::Port | Form::Pasv => b.is_ascii_digit() || b == b',',
            Form::Eprt => b.is_ascii_graphic(),
            Form::Epsv => b.is_ascii_graphic() && b != b')',
        };
        belongs && self.argument.try_push(b).is_ok()
    }

    /// A byte that is not part of an argument, or begins one.
    fn outside(&mut self, b: u8) {
        if b == b'\n' {
            self.word.clear();
            self.at = At::Word;
            return;
        }
        match self.at {
            At::Word => {
                let length = if self.replies { 4 } else { 5 };
                if self.word.try_push(b).is_ok() && self.word.len() == length {
                    self.at = self.recognised().map_or(At::Rest, At::Before);
                }
            }
            At::Before(form) => {
                let begins = match form {
                    Form::Port | Form::Eprt => b != b' ',
                    Form::Pasv => b.is_ascii_digit(),
                    Form::Epsv => b == b'(',
                };
                if begins {
                    self.argument.clear();
                    // A bracket stands before the argument, all else is its first byte.
                    let argument = form == Form::Epsv || self.goes_on(form, b);
                    self.at = if argument { At::Argument(form) } else { At::Rest };
                }
            }
            At::Rest | At::Argument(_) => {}
        }
    }

    /// The form whose word stands at the beginning of the line.
    fn recognised(&self) -> Option<Form> {
        let is = |word: &[u8]| self.word.eq_ignore_ascii_case(word);
        match self.replies {
            false if is(b"PORT ") => Some(Form::Port),
            false if is(b"EPRT ") => Some(Form::Eprt),
            true if is(b"227 ") => Some(Form::Pasv),
            true if is(b"229 ") => Some(Form::Epsv),
            _ => None,
        }
    }
}

/// What an argument says.
fn parse(form: Form, argument: &[u8]) -> Option<Announcement> {
    let (address, port) = match form {
        Form::Port | Form::Pasv => {
            let mut numbers = [0; 6];
            let mut parts = argument.split(|&b| b == b',');
            for n in &mut numbers {
                *n = u8::try_from(number(parts.next()?)?).ok()?;
            }
            if parts.next().is_some() {
                return None;
            }
            let [a, b, c, d, hi, lo] = numbers;
            (Some(IpAddr::from([a, b, c, d])), u16::from_be_bytes([hi, lo]))
        }
        Form::Eprt => {
            let [family, address, port] = fields(argument)?;
            let address = std::str::from_utf8(address).ok()?;
            let address = match family {
                b"1" => IpAddr::V4(address.parse::<Ipv4Addr>().ok()?),
                b"2" => IpAddr::V6(address.parse::<Ipv6Addr>().ok()?),
                _ => return None,
            };
            (Some(address), number(port)?)
        }
        Form::Epsv => match fields(argument)? {
            [b"", b"", port] => (None, number(port)?),
            _ => return None,
        },
    };
    (port != 0).then_some(Announcement { form, address, port })
}

/// The three fields between four delimiters: any printable character that is no digit.
fn fields(argument: &[u8]) -> Option<[&[u8]; 3]> {
    let (&delimiter, rest) = argument.split_first()?;
    let rest = rest.strip_suffix(&[delimiter])?;
    if delimiter.is_ascii_digit() {
        return None;
    }
    let mut parts = rest.split(|&b| b == delimiter);
    let fields = [parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(fields)
}

/// A decimal number of one to five digits.
fn number(digits: &[u8]) -> Option<u16> {
    if !(1..=5).contains(&digits.len()) {
        return None;
    }
    let value = digits.iter().try_fold(0u32, |n, b| b.is_ascii_digit().then(|| n * 10 + u32::from(b - b'0')))?;
    u16::try_from(value).ok()
}

/// The argument that announces `port` at `address` in this form; `None` where the form has no room for the address.
/// Addresses of version 6 are written in full, as Linux does.
pub fn write(form: Form, address: IpAddr, port: u16) -> Option<Text> {
    let mut s = ArrayString::<TEXT>::new();
    let [hi, lo] = port.to_be_bytes();
    match (form, address) {
        (Form::Port | Form::Pasv, IpAddr::V4(a)) => {
            let [a, b, c, d] = a.octets();
            write!(s, "{a},{b},{c},{d},{hi},{lo}").ok()?;
        }
        (Form::Eprt, IpAddr::V4(a)) => write!(s, "|1|{a}|{port}|").ok()?,
        (Form::Eprt, IpAddr::V6(a)) => {
            write!(s, "|2|").ok()?;
            for (n, word) in a.segments().iter().enumerate() {
                write!(s, "{}{word:04x}", if n == 0 { "" } else { ":" }).ok()?;
            }
            write!(s, "|{port}|").ok()?;
        }
        (Form::Epsv, _) => write!(s, "|||{port}|").ok()?,
        (Form::Port | Form::Pasv, IpAddr::V6(_)) => return None,
    }
    Some(s.bytes().collect())
}

#[cfg(test)]
mod tests;
