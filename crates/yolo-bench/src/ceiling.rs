//! The in-process ceiling: the same work without HTTP, queue or client. No server can be faster on the same cores.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use yolo_server::engine::ort::{Options, load};
use yolo_server::engine::{Engine, EngineInput, LoadedModel, Memory, Pixels};
use yolo_vision::{DecodeLimits, Detection, Letterbox, Parameters, decode, letterbox_into, postprocess};

use crate::contender::WORKERS;
use crate::site::Site;

/// Long enough for some 70 pictures, short enough to be near what it calibrates.
const LENGTH: Duration = Duration::from_secs(2);

/// Loops of decode, letterbox, inference and suppression, a session of one thread each.
pub struct Ceiling {
    model: LoadedModel,
    sessions: Vec<Box<dyn Engine>>,
    files: Vec<Vec<u8>>,
}

impl Ceiling {
    /// Opens and warms the sessions.
    ///
    /// # Errors
    /// If model or pictures cannot be used.
    pub fn load(site: &Site) -> anyhow::Result<Self> {
        let model = load(&Options::new(&site.model))?;
        let sessions = (0..WORKERS).map(|_| model.sessions.open()).collect::<Result<_, _>>()?;
        let mut ceiling = Self { model, sessions, files: site.files()? };
        ceiling.rate()?;
        Ok(ceiling)
    }

    /// Pictures a second of all sessions together.
    ///
    /// # Errors
    /// If a picture fails.
    pub fn rate(&mut self) -> anyhow::Result<f64> {
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

    /// What the pictures hold, in the order of their names.
    ///
    /// # Errors
    /// If a picture fails.
    pub fn answers(&mut self) -> anyhow::Result<Vec<Vec<Detection>>> {
        let Self { model, sessions, files } = self;
        let session = sessions.first_mut().context("at least one session")?;
        files.iter().map(|file| detect(model, session.as_mut(), file)).collect()
    }
}

/// Pictures a second of one session; starts at another picture than its neighbours.
fn one_rate(model: &LoadedModel, session: &mut dyn Engine, files: &[Vec<u8>], index: usize) -> anyhow::Result<f64> {
    let start = Instant::now();
    let mut count = 0_u32;
    for file in files.iter().cycle().skip(index * files.len() / WORKERS) {
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
