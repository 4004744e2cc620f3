// Numbers, sizes and times as people read them.

export const whole = (value) => value.toLocaleString("en");
export const counted = (count, noun, plural = `${noun}s`) => `${whole(count)} ${count === 1 ? noun : plural}`;

export const known = (value) => value !== null && value !== undefined;

export function number(value) {
  if (!known(value)) return "–";
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

export const percent = (value, digits = 1) => (!known(value) ? "–" : `${(100 * value).toFixed(digits)} %`);

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${units[unit]}`;
}

export function duration(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 90) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export const time = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "–");
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString();

// Names in the order in which a network has them, as far as numbers in them tell.
export const byName = (a, b) => a.localeCompare(b, "en", { numeric: true });

// How many rows are in `ranges`, [first, stop] each.
export const rowsIn = (ranges) => ranges.reduce((sum, [first, stop]) => sum + stop - first, 0);

// The title of a figure that the service names, as in "quantile_99_9".
export const titleOf = (figure) =>
  figure[0].toUpperCase() +
  figure
    .slice(1)
    .replaceAll("_", " ")
    .replace(/(\d) (\d)/, "$1.$2");
