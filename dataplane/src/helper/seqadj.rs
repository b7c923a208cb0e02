//! Sequence numbers of a byte stream whose text is changed on the way.
//!
//! A [`Stream`] is one direction of a connection. Its [`Edit`]s say which of the sender's bytes the receiver gets others
//! for. From them follows everything else: where a sequence number of the sender lies for the receiver
//! ([`Stream::there`]), where an acknowledgement lies for the sender ([`Stream::back`]), and what a segment carries
//! ([`Stream::splices`]). All three are functions of the edits alone, so a segment that is sent again, in whatever pieces,
//! is changed alike.
//!
//! ```text
//!   sender     ···|  old  |······          the text goes with the segment that has the last of the old bytes;
//!   receiver   ···|   text   |······       the other old bytes vanish from theirs
//! ```
//! The last edit may be *open*: how its bytes go on is not known yet, and until it is they are withheld.
//!
//! *Life-cycle*: with the connection's helper. *Threads*: the owner's worker. *Limits*: [`EDITS`] edits of which the
//! receiver may not have heard; those that were acknowledged are kept for late retransmissions, and make room when
//! another is needed. *Sources*: `linux/net/netfilter/nf_conntrack_seqadj.c`, which remembers one position per direction.

use arrayvec::ArrayVec;

/// Longest text, old or new, bytes.
pub const TEXT: usize = 64;

/// Edits of one direction that are remembered.
pub const EDITS: usize = 4;

/// Beyond this distance positions could not be told apart from such that lie ahead: 1 GiB, a quarter of the number space.
const FAR: u32 = 1 << 30;

/// Whether `a` lies before `b`: RFC 9293 section 3.4.
#[inline]
pub const fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) >> 31 == 1
}

/// How far `b` lies behind `a`, 0 where it does not.
#[inline]
pub const fn ahead(a: u32, b: u32) -> u32 {
    if before(a, b) { b.wrapping_sub(a) } else { 0 }
}

/// Bytes of text.
pub type Text = ArrayVec<u8, TEXT>;

/// No room for another edit: earlier ones are not acknowledged yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A piece of the stream for which the receiver gets another text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edit {
    /// Its first byte, in the sender's numbers.
    pub at: u32,
    /// Its length for the sender, 1..=[`TEXT`].
    pub old: u32,
    /// What the receiver gets.
    pub text: Text,
}

/// What a [`Stream`] consists of, for a table that is saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// What all forgotten edits have added, modulo 2^32.
    pub offset: u32,
    /// In order, without overlap, within 1 GiB.
    pub edits: ArrayVec<Edit, EDITS>,
    /// Whether the last of them is open: it has no text yet.
    pub open: bool,
    /// The highest of the sender's bytes that the receiver has acknowledged.
    pub acked: Option<u32>,
}

impl Edit {
    pub(super) const fn end(&self) -> u32 {
        self.at.wrapping_add(self.old)
    }

    fn length(&self) -> u32 {
        // Invariant: at most TEXT bytes.
        u32::try_from(self.text.len()).unwrap_or(0)
    }

    /// What it adds to the numbers behind it.
    fn delta(&self) -> u32 {
        self.length().wrapping_sub(self.old)
    }
}

/// Bytes of a segment's payload to replace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splice {
    /// Offset in the payload.
    pub at: usize,
    /// How many bytes.
    pub old: usize,
    /// What comes in their place.
    pub text: Text,
}

/// One direction of a connection.
#[derive(Clone, Debug, Default)]
pub struct Stream(Parts);

impl Stream {
    /// The stream of these parts; `None` where none can have them.
    pub fn of(parts: Parts) -> Option<Self> {
        let short = |e: &Edit| (1..=TEXT).contains(&(e.old as usize));
        let (first, last) = (parts.edits.first(), parts.edits.last());
        let near = |first: &Edit, e: &Edit| ahead(first.at, e.at) <= FAR;
        let whole = parts.edits.iter().all(short)
            && parts.edits.windows(2).all(|w| matches!(w, [a, b] if !before(b.at, a.end())))
            && first.is_none_or(|first| parts.edits.iter().all(|e| near(first, e)))
            && (!parts.open || last.is_some_and(|e| e.text.is_empty()));
        whole.then_some(Self(parts))
    }

    /// What it consists of.
    pub fn parts(&self) -> Parts {
        self.0.clone()
    }

    /// Whether the receiver gets what the sender sends.
    pub fn is_plain(&self) -> bool {
        self.0.edits.is_empty() && self.0.offset == 0
    }

    /// Where the sender's byte `seq` lies for the receiver. All of an edit begins where it begins.
    pub fn there(&self, seq: u32) -> u32 {
        let mut offset = self.0.offset;
        for e in &self.0.edits {
            if !before(e.at, seq) {
                break;
            }
            if before(seq, e.end()) {
                return e.at.wrapping_add(offset);
            }
            offset = offset.wrapping_add(e.delta());
        }
        seq.wrapping_add(offset)
    }

    /// What an acknowledgement up to the receiver's `ack` acknowledges to the sender: no byte of an edit before all of it.
    pub fn back(&self, ack: u32) -> u32 {
        self.edge(ack, false)
    }

    /// The sender's number for the receiver's `n`. Within an edit there is none: it is the edit's end with `up`, else its
    /// beginning.
    pub fn edge(&self, n: u32, up: bool) -> u32 {
        let mut offset = self.0.offset;
        for e in &self.0.edits {
            let at = e.at.wrapping_add(offset);
            if !before(at, n) {
                break;
            }
            if before(n, at.wrapping_add(e.length())) {
                return if up { e.end() } else { e.at };
            }
            offset = offset.wrapping_add(e.delta());
        }
        n.wrapping_sub(offset)
    }

    /// What is to be replaced in a segment of `len` bytes that begins at `seq`, in order.
    pub fn splices(&self, seq: u32, len: u32) -> ArrayVec<Splice, EDITS> {
        let end = seq.wrapping_add(len);
        let touched = self.0.edits.iter().filter(|e| before(e.at, end) && before(seq, e.end()));
        let splice = |e: &Edit| {
            let from = if before(e.at, seq) { seq } else { e.at };
            let whole = !before(end, e.end());
            let to = if whole { e.end() } else { end };
            Splice {
                at: from.wrapping_sub(seq) as usize,
                old: to.wrapping_sub(from) as usize,
                text: if whole { e.text.clone() } else { Text::new() },
            }
        };
        touched.map(splice).collect()
    }

    /// Replaces the `old` bytes from `at` on by `text`.
    ///
    /// # Errors
    /// [`Full`], and nothing changed.
    pub fn replace(&mut self, at: u32, old: u32, text: Text) -> Result<(), Full> {
        if self.0.edits.last().is_some_and(|last| before(at, last.end())) {
            debug_assert!(false, "edits follow each other");
            return Err(Full);
        }
        if self.0.edits.is_full() {
            let first = self.0.edits.first().ok_or(Full)?;
            if self.0.acked.is_none_or(|acked| before(acked, first.end())) {
                return Err(Full);
            }
            self.forget_first();
        }
        self.0.edits.push(Edit { at, old, text });
        Ok(())
    }

    /// Withholds the `len` bytes from `at` on: the beginning of an edit whose end has not come yet, or more of it.
    ///
    /// # Errors
    /// [`Full`], and nothing changed.
    pub fn withhold(&mut self, at: u32, len: u32) -> Result<(), Full> {
        if self.0.open
            && let Some(e) = self.0.edits.last_mut()
        {
            e.old = len;
            return Ok(());
        }
        self.replace(at, len, Text::new())?;
        self.0.open = true;
        Ok(())
    }

    /// Whether bytes are withheld.
    pub fn is_open(&self) -> bool {
        self.0.open
    }

    /// Ends the open edit: it is `old` bytes long, and `text` stands for it.
    pub fn close(&mut self, old: u32, text: Text) {
        if std::mem::take(&mut self.0.open)
            && let Some(e) = self.0.edits.last_mut()
        {
            e.old = old;
            e.text = text;
        }
    }

    /// The open edit ends with the stream: what it withheld is lost.
    pub fn close_empty(&mut self) {
        self.0.open = false;
    }

    /// Whether bytes of this segment are withheld still.
    pub fn withholds(&self, seq: u32, len: u32) -> bool {
        let last = self.0.edits.last().filter(|_| self.0.open);
        last.is_some_and(|e| before(e.at, seq.wrapping_add(len)) && before(seq, e.end()))
    }

    /// The receiver has acknowledged up to the sender's `seq`.
    pub fn acknowledged(&mut self, seq: u32) {
        if self.0.acked.is_none_or(|a| before(a, seq)) {
            self.0.acked = Some(seq);
        }
    }

    /// The stream has got as far as `seq`: edits that lie too far behind to be compared with it are forgotten.
    pub fn reached(&mut self, seq: u32) {
        while self.0.edits.first().is_some_and(|e| ahead(e.at, seq) > FAR) && !(self.0.open && self.0.edits.len() == 1)
        {
            self.forget_first();
        }
        if self.0.acked.is_some_and(|a| ahead(a, seq) > FAR) {
            self.0.acked = None;
        }
    }

    /// Another connection's stream begins at `seq` in place of this one: from there on its numbers go on as they would have,
    /// and nothing lies ahead that would change them.
    pub fn restart(&mut self, seq: u32) {
        *self = Self(Parts { offset: self.there(seq).wrapping_sub(seq), ..Parts::default() });
    }

    fn forget_first(&mut self) {
        if let Some(e) = self.0.edits.pop_at(0) {
            self.0.offset = self.0.offset.wrapping_add(e.delta());
        }
    }
}

#[cfg(test)]
mod tests;
