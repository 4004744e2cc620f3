// What is on the page with too little contrast. Text is measured against what is behind it; the edges of controls, bars
// and the marks of pictures against what they are on. Returns {checked: {text, edges}, low: [[what, contrast]]}.
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parsed = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return { r, g, b, a: a / 255 };
  };
  const part = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const light = ({ r, g, b }) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const contrast = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = parsed(getComputedStyle(each).backgroundColor);
      if (colour.a === 1) return colour;
      if (colour.a > 0) throw new Error("a background that is half transparent cannot be measured");
    }
    return parsed(getComputedStyle(document.body).backgroundColor);
  };
  const visible = (element) =>
    element.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && element.getClientRects().length;
  const checked = { text: 0, edges: 0 };
  const low = [];
  const check = (kind, what, one, other, least) => {
    checked[kind] += 1;
    const found = contrast(one, other);
    if (found < least) low.push([what, Math.round(100 * found) / 100]);
  };
  const named = (element) =>
    `${element.tagName.toLowerCase()}.${element.className.baseVal ?? element.className} ${element.textContent.trim().slice(0, 30)}`;

  for (const element of document.querySelectorAll("body *")) {
    if (!visible(element) || element.closest(".uplot, iframe, script, .visually-hidden, .skip")) continue;
    const style = getComputedStyle(element);
    const own = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if ((own || element.matches("input, textarea")) && !element.disabled)
      check("text", named(element), parsed(style.color), behind(element), large || element.matches(".key") ? 3 : 4.5);
    if (
      element.matches(
        "input:not([type=checkbox], [type=radio]), select, textarea, button, .button, .state, .tag, fieldset, progress, pre, dialog, iframe, .panel, .stages li, thead th",
      )
    ) {
      const around = behind(element.parentElement);
      for (const side of ["Top", "Right", "Bottom", "Left"]) {
        if (parseFloat(style[`border${side}Width`]) > 0)
          check("edges", `edge of ${named(element)}`, parsed(style[`border${side}Color`]), around, 3);
      }
    }
    if (element.matches("svg rect:not(.all)"))
      check("edges", named(element), parsed(style.fill), parsed(getComputedStyle(element.parentElement.querySelector(".all")).fill), 3);
    if (element.matches("svg.coverage")) check("edges", named(element), parsed(style.outlineColor), behind(element.parentElement), 3);
  }
  const probe = document.getElementById("colour");
  for (const mark of ["--accent", "--range", "--error-bar", "--bad", "--warn", "--ink"]) {
    probe.style.color = `var(${mark})`;
    check(
      "edges",
      `marks of plots in ${mark}`,
      parsed(getComputedStyle(probe).color),
      parsed(getComputedStyle(document.body).backgroundColor),
      3,
    );
  }
  return { checked, low };
}
