//! WebSocket frames, watched as they pass: where one ends, and whether it was a close frame. Nothing is decoded.

/// The opcode of a close frame (RFC 6455 §5.2).
const CLOSE: u8 = 8;

/// The longest frame header: two bytes, eight of length, four of mask.
const LONGEST_HEADER: usize = 14;

/// Where in the stream of frames a direction is.
#[derive(Debug, Default)]
pub struct Frames {
    /// The frame's header, as far as it has come.
    header: [u8; LONGEST_HEADER],
    held: usize,
    /// Bytes of the frame's payload still to come.
    left: u64,
    /// The first two bytes of a close frame's payload, as far as they have come.
    code: Option<([u8; 2], u8)>,
    in_close: bool,
    closed: Option<Option<u16>>,
}

impl Frames {
    /// Whether the last frame is over and no other has begun.
    pub fn is_between(&self) -> bool {
        self.held == 0 && self.left == 0
    }

    /// The code of the first close frame, once one has passed; a close frame need not have a code.
    pub fn closed_with(&self) -> Option<Option<u16>> {
        self.closed
    }

    /// Notes bytes that have been passed on.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.left > 0 {
                let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                let (payload, rest) = bytes.split_at(count);
                self.payload(payload);
                bytes = rest;
                continue;
            }
            if let Some(place) = self.header.get_mut(self.held) {
                *place = byte;
            }
            self.held += 1;
            bytes = rest;
            if self.held >= 2 && self.held == self.header_len() {
                self.begin();
            }
        }
    }

    /// How many of `bytes` belong to the frame that is under way.
    pub fn rest_of_frame(&self, bytes: &[u8]) -> usize {
        let mut ahead = Self { header: self.header, held: self.held, left: self.left, ..Self::default() };
        for (at, byte) in bytes.iter().enumerate() {
            if ahead.is_between() {
                return at;
            }
            if ahead.left > 0 {
                return at + usize::try_from(ahead.left).unwrap_or(usize::MAX).min(bytes.len() - at);
            }
            ahead.pass(&[*byte]);
        }
        bytes.len()
    }

    fn header_len(&self) -> usize {
        let length = match self.header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if self.header[1] & 0x80 == 0 { 0 } else { 4 };
        2 + length + mask
    }

    /// The header is whole.
    fn begin(&mut self) {
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
        self.left = match self.header[1] & 0x7f {
            126 => number(&self.header[2..4]),
            127 => number(&self.header[2..10]),
            short => u64::from(short),
        };
        self.in_close = self.header[0] & 0x0f == CLOSE;
        if self.in_close && self.closed.is_none() {
            if self.left < 2 {
                self.closed = Some(None);
            } else {
                self.code = Some(([0; 2], 0));
            }
        }
        self.held = 0;
    }

    fn payload(&mut self, bytes: &[u8]) {
        if let Some((code, held)) = &mut self.code {
            for byte in bytes.iter().take(2 - usize::from(*held)) {
                if let Some(place) = code.get_mut(usize::from(*held)) {
                    *place = byte ^ mask_at(&self.header, usize::from(*held));
                }
                *held += 1;
            }
            if *held == 2 {
                self.closed = Some(Some(u16::from_be_bytes(*code)));
                self.code = None;
            }
        }
        self.left = self.left.saturating_sub(bytes.len() as u64);
    }
}

/// The mask of a short frame's payload byte; close frames are always short.
fn mask_at(header: &[u8; LONGEST_HEADER], at: usize) -> u8 {
    if header[1] & 0x80 == 0 { 0 } else { header[2 + at % 4] }
}

/// A whole close frame; a client's is masked.
pub fn close_frame(code: u16, mask: Option<[u8; 4]>) -> Vec<u8> {
    let code = code.to_be_bytes();
    match mask {
        None => vec![0x88, 2, code[0], code[1]],
        Some(mask) => {
            vec![0x88, 0x82, mask[0], mask[1], mask[2], mask[3], code[0] ^ mask[0], code[1] ^ mask[1]]
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(opcode: u8, payload: &[u8], masked: bool) -> Vec<u8> {
        let mut out = vec![0x80 | opcode];
        let bit = if masked { 0x80 } else { 0 };
        match u16::try_from(payload.len()) {
            Ok(len @ 0..126) => out.push(bit | len as u8),
            Ok(len) => {
                out.push(bit | 126);
                out.extend_from_slice(&len.to_be_bytes());
            }
            Err(_) => {
                out.push(bit | 127);
                out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 3, 4];
        if masked {
            out.extend_from_slice(&mask);
            out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        } else {
            out.extend_from_slice(payload);
        }
        out
    }

    #[test]
    fn a_close_frame_is_seen_with_its_code_masked_or_not() {
        for masked in [false, true] {
            let mut frames = Frames::default();
            frames.pass(&frame(1, b"hello", masked));
            assert_eq!(frames.closed_with(), None);
            frames.pass(&frame(8, &[0x03, 0xe9, b'x'], masked));
            assert_eq!(frames.closed_with(), Some(Some(1001)));
        }
        let mut frames = Frames::default();
        frames.pass(&frame(8, &[], true));
        assert_eq!(frames.closed_with(), Some(None));
    }

    #[test]
    fn our_own_close_frames_read_back() {
        for mask in [None, Some([7, 8, 9, 10])] {
            let mut frames = Frames::default();
            frames.pass(&close_frame(1001, mask));
            assert_eq!((frames.closed_with(), frames.is_between()), (Some(Some(1001)), true));
        }
    }

    proptest! {
        #[test]
        fn frames_end_where_they_end_however_they_arrive(
            sizes in prop::collection::vec(prop_oneof![0_usize..300, Just(70_000)], 1..5),
            masked in any::<bool>(),
            cuts in prop::collection::vec(1_usize..50, 0..40),
        ) {
            let all: Vec<Vec<u8>> = sizes.iter().map(|size| frame(2, &vec![8; *size], masked)).collect();
            let raw = all.concat();
            let mut ends = Vec::new();
            let mut end = 0;
            for frame in &all {
                end += frame.len();
                ends.push(end);
            }
            let mut frames = Frames::default();
            let mut at = 0;
            for cut in cuts.into_iter().chain(std::iter::repeat(9999)) {
                if at == raw.len() { break; }
                let rest = frames.rest_of_frame(&raw[at..]);
                let expected = if at == 0 || ends.contains(&at) { 0 } else { ends.iter().find(|end| **end > at).unwrap() - at };
                prop_assert_eq!(rest, expected);
                let next = raw.len().min(at + cut);
                frames.pass(&raw[at..next]);
                at = next;
                prop_assert_eq!(frames.is_between(), ends.contains(&at));
            }
            prop_assert_eq!(frames.closed_with(), None);
        }
    }
}
