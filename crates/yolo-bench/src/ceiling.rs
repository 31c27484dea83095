//! The in-process ceiling: the same work without HTTP, queue or client. No server can be faster on the same cores.
//!
//! It runs in a process of its own that has ended when a contender is measured. If this program itself had ONNX Runtime
//! mapped, it would bear half of every page of the library that the server maps too, for PSS divides shared pages
//! among their processes; the peers bring libraries of their own, which nobody would bear for them.

use std::io::{BufRead, BufReader, Write, stdin};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use clap::ValueEnum;
use serde::Serialize;
use serde::de::DeserializeOwned;
use yolo_server::engine::ort::{Options, load};
use yolo_server::engine::{Engine, EngineInput, LoadedModel, Memory, Pixels};
use yolo_server::libraries;
use yolo_vision::{DecodeLimits, Detection, Letterbox, Parameters, decode, letterbox_into, postprocess};

use crate::contender::WORKERS;
use crate::machine;
use crate::site::Site;

/// Long enough for some 70 pictures, short enough to be near what it calibrates.
const LENGTH: Duration = Duration::from_secs(2);

/// Passes of a session that are not counted: its heap grows, its weights are read.
const WARM_PASSES: usize = 3;

/// What the process of the ceiling prints, as JSON.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Part {
    /// Pictures a second of all sessions together.
    Rate,
    /// What the pictures hold, in the order of their names.
    Answers,
    /// The rate again for each line that comes in.
    Rates,
}

/// Pictures a second of all sessions together.
///
/// # Errors
/// If the process fails.
pub fn rate(site: &Site) -> anyhow::Result<f64> {
    ask(site, Part::Rate)
}

/// What the pictures hold, in the order of their names.
///
/// # Errors
/// If the process fails.
pub fn answers(site: &Site) -> anyhow::Result<Vec<Vec<Detection>>> {
    ask(site, Part::Answers)
}

/// Runs this program as the ceiling, to its end.
fn ask<T: DeserializeOwned>(site: &Site, part: Part) -> anyhow::Result<T> {
    let output = command(site, part)?.stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "the process of the ceiling failed: {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn command(site: &Site, part: Part) -> anyhow::Result<Command> {
    let part = part.to_possible_value().context("every part has a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--side-px", &site.side_px.to_string(), "--ceiling", part.get_name()]).stderr(Stdio::inherit());
    command.envs(libraries::settings()); // as the server gives itself
    Ok(command)
}

/// The ceiling in a process that stays: idle but while it measures.
pub struct Standing {
    child: Child,
    /// Its end is the process' end.
    ask: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Standing {
    /// Starts the process; it loads the model before its first answer.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(site: &Site) -> anyhow::Result<Self> {
        let mut child = command(site, Part::Rates)?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (ask, answers) = (child.stdin.take(), child.stdout.take().context("its output is a pipe")?);
        Ok(Self { child, ask, answers: BufReader::new(answers) })
    }

    /// Pictures a second of all sessions together, now.
    ///
    /// # Errors
    /// If the process has failed.
    pub fn rate(&mut self) -> anyhow::Result<f64> {
        self.ask.as_mut().context("it was started")?.write_all(b"\n")?;
        let mut line = String::new();
        ensure!(self.answers.read_line(&mut line)? > 0, "the process of the ceiling ended");
        Ok(serde_json::from_str(&line)?)
    }

    /// CPU seconds that it took so far.
    pub fn cpu_s(&self) -> f64 {
        machine::process_s(self.child.id())
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        drop(self.ask.take());
        let _ = self.child.wait(); // nothing is left to do for one that failed
    }
}

/// Measures a part and prints it for the process that asked.
///
/// # Errors
/// If model or pictures cannot be used.
pub fn print(site: &Site, part: Part) -> anyhow::Result<()> {
    let mut ceiling = Ceiling::load(site)?;
    match part {
        Part::Rate => write(&ceiling.rate()?),
        Part::Answers => write(&ceiling.answers()?),
        Part::Rates => stdin().lines().try_for_each(|line| {
            line?;
            write(&ceiling.rate()?)
        }),
    }
}

fn write(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}

/// Loops of decode, letterbox, inference and suppression, a session of one thread each.
struct Ceiling {
    model: LoadedModel,
    sessions: Vec<Box<dyn Engine>>,
    files: Vec<Vec<u8>>,
}

impl Ceiling {
    fn load(site: &Site) -> anyhow::Result<Self> {
        let model = load(&Options::new(&site.model))?;
        let sessions = (0..WORKERS).map(|_| model.sessions.open()).collect::<Result<_, _>>()?;
        Ok(Self { model, sessions, files: site.files()? })
    }

    fn rate(&mut self) -> anyhow::Result<f64> {
        let Self { model, sessions, files } = self;
        let (model, files) = (&*model, &*files);
        std::thread::scope(|scope| {
            let loops: Vec<_> = sessions
                .iter_mut()
                .enumerate()
                .map(|(index, session)| scope.spawn(move || one_rate(model, session.as_mut(), files, index)))
                .collect();
            let rates =
                loops.into_iter().map(|one| one.join().map_err(|_| anyhow!("a loop of the ceiling panicked"))?);
            rates.sum()
        })
    }

    fn answers(&mut self) -> anyhow::Result<Vec<Vec<Detection>>> {
        let Self { model, sessions, files } = self;
        let session = sessions.first_mut().context("at least one session")?;
        files.iter().map(|file| detect(model, session.as_mut(), file)).collect()
    }
}

/// Pictures a second of one session; starts at another picture than its neighbours.
fn one_rate(model: &LoadedModel, session: &mut dyn Engine, files: &[Vec<u8>], index: usize) -> anyhow::Result<f64> {
    let mut files = files.iter().cycle().skip(index * files.len() / WORKERS);
    for file in files.by_ref().take(WARM_PASSES) {
        detect(model, session, file)?;
    }
    let start = Instant::now();
    let mut count = 0_u32;
    for file in files {
        detect(model, session, file)?;
        count += 1;
        if start.elapsed() >= LENGTH {
            break;
        }
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

fn detect(model: &LoadedModel, session: &mut dyn Engine, file: &[u8]) -> anyhow::Result<Vec<Detection>> {
    let picture = decode(file, &DecodeLimits::default())?;
    let letterbox = Letterbox::plan(picture.size(), model.info.size())?;
    let mut pixels = vec![0; letterbox.output_len()];
    letterbox_into(&picture, &letterbox, &mut pixels)?;
    let input = EngineInput { pixels: Pixels::Levels(pixels.into()), size: model.info.size(), content: [0; 32] };
    let output = session.run(&[&input], Memory::Keep)?;
    let views = output.image(0).context("the model gave no output")?;
    Ok(postprocess(&views, &model.info, &letterbox, &Parameters::default())?)
}
