//! Datagrams cut into fragments as a test wants them, and put together again as their receiver would.

use super::pkt::*;

/// An IPv6 packet as fragments with `step` bytes each.
pub fn fragments_v6(p: &Pkt, id: u32, step: usize) -> Vec<Pkt> {
    let cuts: Vec<_> = (step..p.l4.len()).step_by(step).collect();
    cut(p, id, &cuts)
}

/// A packet as fragments that begin at the offsets `cuts` (multiples of 8), and at 0.
pub fn cut(p: &Pkt, id: u32, cuts: &[usize]) -> Vec<Pkt> {
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([p.l4.len()]);
    starts.zip(ends).map(|(start, end)| piece(p, id, start, end)).collect()
}

/// Bytes `start..end` of a packet's payload as a fragment; those that reach its end are the last.
pub fn piece(p: &Pkt, id: u32, start: usize, end: usize) -> Pkt {
    let more = end < p.l4.len();
    let mut f = p.clone();
    f.l4 = p.l4[start..end].to_vec();
    if p.src.is_ipv4() {
        f.id = id as u16;
        f.fragment = Some((start as u16, more));
    } else {
        f.proto = 44;
        let field = start as u16 | u16::from(more);
        f.l4.splice(0..0, [&[p.proto, 0][..], &field.to_be_bytes(), &id.to_be_bytes()].concat());
    }
    f
}

/// The datagram that frames without a VLAN tag are fragments of. Reading it asserts that its checksums are right.
#[track_caller]
pub fn put_together(frames: &[Vec<u8>]) -> Seen {
    let v4 = be16_at(&frames[0], 12) == 0x0800;
    let header = if v4 { 34 } else { 54 };
    let (mut payload, mut end) = (Vec::new(), None);
    for f in frames {
        assert_eq!(f[..12], frames[0][..12], "one way for all");
        let (at, more, data) = if v4 {
            let field = be16_at(f, 20);
            (usize::from(field & 0x1fff) * 8, field & 0x2000 != 0, 34)
        } else if f[20] == 44 {
            let field = be16_at(f, 56);
            (usize::from(field & 0xfff8), field & 1 != 0, 62)
        } else {
            (0, false, 54)
        };
        let size = f.len() - data;
        payload.resize(payload.len().max(at + size), 0);
        payload[at..at + size].copy_from_slice(&f[data..]);
        if !more {
            assert!(end.replace(at + size).is_none(), "one last fragment");
        }
    }
    assert_eq!(end, Some(payload.len()), "the last fragment ends it");
    let mut frame = frames[0][..header].to_vec();
    if v4 {
        frame[16..18].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
        frame[20..22].fill(0);
        frame[24..26].fill(0);
        let sum = !dataplane::parse::checksum::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&(payload.len() as u16).to_be_bytes());
        if frame[20] == 44 {
            frame[20] = frames[0][54];
        }
    }
    frame.extend(payload);
    Seen::read(&frame)
}
