//! A drawing as an image, for mails and chats that show no SVG.

use std::sync::Arc;

use anyhow::Context as _;
use resvg::{tiny_skia, usvg};

/// Pixels for each unit of the drawing: sharp on a screen of twice the density.
const SCALE: f32 = 2.0;
/// No drawing of ours is larger; the image takes 4 bytes a pixel.
const SIDE_MAX: f32 = 8_192.0;

/// Renders an SVG as PNG. Its words are set in the one font that comes with the program, whatever
/// fonts the computer has.
///
/// # Errors
/// When the text is no SVG, or too large to draw.
pub fn png(svg: &str) -> anyhow::Result<Vec<u8>> {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    let family = fonts.faces().next().and_then(|face| face.families.first());
    let family = family.map(|(name, _)| name.clone()).context("the font of drawings is broken")?;
    fonts.set_sans_serif_family(&family);
    let options =
        usvg::Options { font_family: family, fontdb: Arc::new(fonts), ..Default::default() };
    let tree = usvg::Tree::from_str(svg, &options).context("not a drawing")?;
    let size = tree.size();
    let side = |length: f32| -> anyhow::Result<u32> {
        let pixels = (length * SCALE).ceil();
        anyhow::ensure!((1.0..=SIDE_MAX).contains(&pixels), "a drawing of {pixels} pixels");
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within SIDE_MAX
        Ok(pixels as u32)
    };
    let mut pixels = tiny_skia::Pixmap::new(side(size.width())?, side(size.height())?)
        .context("too large to draw")?;
    let scale = tiny_skia::Transform::from_scale(SCALE, SCALE);
    resvg::render(&tree, scale, &mut pixels.as_mut());
    pixels.encode_png().context("cannot write the image")
}
