//! Hears a request, then its body, then the end of whoever asked.
//!
//! A thread of its own reads, so that the end is heard whatever the rest of the process is at. It is a plain thread: the
//! runtime's end waits for none of those.

use std::io::{BufRead as _, BufReader, Read};

use farrier_model::{Failure, FailureKind};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};

use super::wire::{LONGEST_FRAME, LONGEST_REQUEST};

/// Frames that may wait to be taken.
const WAITING: usize = 4;

/// What is heard.
pub(crate) struct Heard {
    pub(crate) request: oneshot::Receiver<Result<String, Failure>>,
    pub(crate) body: Body,
}

/// The frames after a request.
pub(crate) struct Body(mpsc::Receiver<Vec<u8>>);

/// Listens to `input`. `gone` is called when whoever asked has gone, or makes no sense.
pub(crate) fn listen(input: impl Read + Send + 'static, gone: impl FnOnce() + Send + 'static) -> Heard {
    let (said, request) = oneshot::channel();
    let (frames, body) = mpsc::channel(WAITING);
    std::thread::spawn(move || {
        let mut input = BufReader::new(input);
        let line = read_request(&mut input);
        let is_one = line.is_ok();
        let _ = said.send(line);
        if is_one {
            while let Some(frame) = read_frame(&mut input) {
                // One that failed before it had all of the body still says so.
                let _ = frames.blocking_send(frame);
            }
            gone();
        }
    });
    Heard { request, body: Body(body) }
}

fn read_request(input: &mut impl std::io::BufRead) -> Result<String, Failure> {
    let wrong = |message: String| Failure::new(FailureKind::Input, message);
    let mut line = Vec::new();
    input
        .take(LONGEST_REQUEST as u64 + 1)
        .read_until(b'\n', &mut line)
        .map_err(|error| wrong(format!("cannot read the request: {error}")))?;
    if line.last() != Some(&b'\n') {
        return Err(wrong(format!("the request is not a line of at most {LONGEST_REQUEST} bytes")));
    }
    String::from_utf8(line).map_err(|_| wrong("the request is no text".into()))
}

fn read_frame(input: &mut impl Read) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    input.read_exact(&mut length).ok()?;
    let length = u32::from_be_bytes(length) as usize;
    let mut frame = vec![0; length.min(LONGEST_FRAME + 1)];
    if frame.len() > LONGEST_FRAME {
        return None;
    }
    input.read_exact(&mut frame).ok()?;
    Some(frame)
}

impl Body {
    /// The next frame; nothing at the end of the body.
    pub(crate) async fn frame(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        self.0.recv().await.map(some).ok_or_else(cut)
    }

    /// The same in a thread that may wait.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        self.0.blocking_recv().map(some).ok_or_else(cut)
    }

    /// The frame after the end.
    pub(crate) fn closing<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let frame = self.next_frame()?.unwrap_or_default();
        serde_json::from_slice(&frame).map_err(|error| {
            Failure::new(FailureKind::Input, format!("this does not close the body of a request: {error}"))
        })
    }
}

fn some(frame: Vec<u8>) -> Option<Vec<u8>> {
    (!frame.is_empty()).then_some(frame)
}

fn cut() -> Failure {
    Failure::new(FailureKind::Unreachable, "the request was cut off")
}

/// What a frame is before its bytes.
pub(crate) fn head(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use super::*;

    /// What is heard of some bytes: the request, the frames, and whether the end was.
    fn heard(bytes: &[u8]) -> (Result<String, String>, Vec<Vec<u8>>) {
        let (gone, end) = std_mpsc::channel();
        let Heard { request, mut body } = listen(std::io::Cursor::new(bytes.to_vec()), move || {
            gone.send(()).unwrap();
        });
        let request = request.blocking_recv().unwrap().map_err(|failure| failure.message);
        let mut frames = Vec::new();
        while let Some(frame) = body.0.blocking_recv() {
            frames.push(frame);
        }
        assert_eq!(end.recv().is_ok(), request.is_ok(), "the end is heard after a request");
        (request, frames)
    }

    #[test]
    fn a_request_has_a_body_and_an_end() {
        let mut bytes = b"{}\n".to_vec();
        for frame in [&b"one"[..], b"", b"closing"] {
            bytes.extend(head(frame.len()));
            bytes.extend(frame);
        }
        let (request, frames) = heard(&bytes);
        assert_eq!(request.unwrap(), "{}\n");
        assert_eq!(frames, [&b"one"[..], b"", b"closing"]);
        // Cut anywhere, what was whole before is heard, and nothing after it.
        for cut in 3..bytes.len() {
            let (_, found) = heard(&bytes[..cut]);
            assert_eq!(found, frames[..found.len()], "cut at {cut}");
            assert!(found.len() < 3, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_too_long_is_not_taken_in() {
        let mut bytes = b"{}\n".to_vec();
        bytes.extend(head(LONGEST_FRAME + 1));
        bytes.extend(vec![b'x'; LONGEST_FRAME + 1]);
        assert_eq!(heard(&bytes).1, Vec::<Vec<u8>>::new());
        let mut line = vec![b'x'; LONGEST_REQUEST + 1];
        line.push(b'\n');
        assert!(heard(&line).0.unwrap_err().contains("not a line of at most"));
        assert!(heard(b"{}").0.unwrap_err().contains("not a line of at most"));
        assert!(heard(b"\xff\n").0.unwrap_err().contains("is no text"));
    }
}
