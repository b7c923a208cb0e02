//! Writes pcap files: a header of 24 bytes, then 16 before each frame. Sources: the pcap-savefile(5) manual page.

use std::io::{self, Write};

/// The header of a file of Ethernet frames with microsecond times.
const HEADER: [u8; 24] = {
    let mut h = [0; 24];
    let magic = 0xa1b2_c3d4_u32.to_le_bytes();
    (h[0], h[1], h[2], h[3]) = (magic[0], magic[1], magic[2], magic[3]);
    h[4] = 2; // version 2.4
    h[6] = 4;
    (h[16], h[17]) = (0xff, 0xff); // snap length 65,535
    h[20] = 1; // Ethernet
    h
};

/// A file being written, all of its frames at time 0.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    frames: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W) -> io::Result<Self> {
        out.write_all(&HEADER)?;
        Ok(Self { out, frames: 0 })
    }

    /// Adds a frame.
    ///
    /// # Errors
    /// Those of the file; a frame of more than 65,535 bytes.
    pub fn frame(&mut self, frame: &[u8]) -> io::Result<()> {
        let len = u16::try_from(frame.len()).map_err(io::Error::other)?;
        let len = u32::from(len).to_le_bytes();
        self.out.write_all(&[0; 8])?; // seconds, microseconds
        self.out.write_all(&len)?; // captured
        self.out.write_all(&len)?; // on the wire
        self.out.write_all(frame)?;
        self.frames += 1;
        Ok(())
    }

    /// Ends the file; how many frames it has.
    ///
    /// # Errors
    /// Those of the file.
    pub fn finish(mut self) -> io::Result<u64> {
        self.out.flush()?;
        Ok(self.frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_header_and_each_frame_behind_its_own() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file).expect("a Vec takes all");
        for byte in [7, 8] {
            writer.frame(&[byte; 60]).expect("a Vec takes all");
        }
        assert_eq!(writer.finish().expect("a Vec takes all"), 2);
        assert_eq!(file.len(), 24 + 2 * (16 + 60));
        assert_eq!(file[..8], [0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(file[24..40], [0, 0, 0, 0, 0, 0, 0, 0, 60, 0, 0, 0, 60, 0, 0, 0]);
        assert_eq!(file[40], 7);
        assert_eq!(file[24 + 76 + 16], 8);
    }
}
