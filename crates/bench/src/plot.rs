//! Bars of a table's main figure, as SVG.

use std::path::Path;

use plotters::prelude::*;

use crate::Result;
use crate::report::{Table, number};

const WIDTH: u32 = 900;
const BAR: u32 = 22;
const LEFT: i32 = 420;
const RIGHT: i32 = 130;
const TOP: i32 = 46;

/// Draws a table, if it has a main figure.
pub(crate) fn draw(table: &Table, number_of_table: usize, folder: &Path) -> Result<()> {
    let Some(main) = table.main else { return Ok(()) };
    let bars: Vec<(String, f64)> =
        table.lines.iter().filter_map(|line| Some((line.labels.join(", "), line.median(main)?))).collect();
    let most = bars.iter().map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
    let file = folder.join(format!("{}-{number_of_table}.svg", table.scenario));
    let height = TOP as u32 + BAR * bars.len() as u32 + 10;
    let area = SVGBackend::new(&file, (WIDTH, height)).into_drawing_area();
    let failed = |e: DrawingAreaErrorKind<_>| crate::Failure::from(format!("{}: {e}", file.display()));
    area.fill(&WHITE).map_err(failed)?;
    let text = |size: f64| ("sans-serif", size).into_font().color(&BLACK);
    area.draw(&Text::new(format!("{}: {main}", table.scenario), (10, 8), text(18.0))).map_err(failed)?;
    area.draw(&Text::new(table.title.clone(), (10, 28), text(12.0))).map_err(failed)?;
    for (n, (label, value)) in bars.iter().enumerate() {
        let y = TOP + (n as u32 * BAR) as i32;
        let width = (value / most * f64::from(WIDTH as i32 - LEFT - RIGHT)) as i32;
        let colour = if label.contains("Fencepost") { RGBColor(31, 119, 180) } else { RGBColor(170, 170, 170) };
        area.draw(&Text::new(label.clone(), (10, y + 3), text(13.0))).map_err(failed)?;
        area.draw(&Rectangle::new([(LEFT, y), (LEFT + width.max(1), y + BAR as i32 - 5)], colour.filled()))
            .map_err(failed)?;
        area.draw(&Text::new(number(*value), (LEFT + width + 6, y + 3), text(13.0))).map_err(failed)?;
    }
    area.present().map_err(failed)?;
    Ok(())
}
