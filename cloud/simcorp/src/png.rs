//! Renders an SVG drawing as a PNG image, for mails and chats that do not show SVG.

use std::sync::Arc;

use anyhow::Context as _;
use resvg::{tiny_skia, usvg};

/// Pixels per unit of the drawing: sharp on a screen of twice the density.
const SCALE: f32 = 2.0;
/// The largest side, in pixels. None of our drawings is larger; the image takes 4 bytes per pixel.
const SIDE_MAX: f32 = 8_192.0;

/// Renders an SVG as PNG. Its text uses the one font that is embedded in the program, not the fonts
/// of the computer.
///
/// # Errors
/// When the text is not valid SVG, or the drawing is too large.
pub fn render(svg: &str) -> anyhow::Result<Vec<u8>> {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(epaint_default_fonts::UBUNTU_LIGHT.to_vec());
    let family = fonts.faces().next().and_then(|face| face.families.first());
    let family =
        family.map(|(name, _)| name.clone()).context("the embedded font cannot be read")?;
    fonts.set_sans_serif_family(&family);
    let options =
        usvg::Options { font_family: family, fontdb: Arc::new(fonts), ..Default::default() };
    let tree = usvg::Tree::from_str(svg, &options).context("not an SVG drawing")?;
    let size = tree.size();
    let side = |length: f32| -> anyhow::Result<u32> {
        let pixels = (length * SCALE).ceil();
        anyhow::ensure!((1.0..=SIDE_MAX).contains(&pixels), "a drawing of {pixels} pixels");
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within SIDE_MAX
        Ok(pixels as u32)
    };
    let mut pixels = tiny_skia::Pixmap::new(side(size.width())?, side(size.height())?)
        .context("the drawing is too large")?;
    let scale = tiny_skia::Transform::from_scale(SCALE, SCALE);
    resvg::render(&tree, scale, &mut pixels.as_mut());
    pixels.encode_png().context("cannot write the image")
}
