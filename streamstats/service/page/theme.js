// Light, dark, or as the system: the button goes through them, and the browser remembers the choice.

const THEMES = ["system", "light", "dark"];
const stored = () => localStorage.getItem("theme") ?? "system";

export function startTheme(button) {
  const apply = (theme) => {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    window.dispatchEvent(new Event("themechange"));
  };
  button.addEventListener("click", () => {
    const theme = THEMES[(THEMES.indexOf(stored()) + 1) % THEMES.length];
    localStorage.setItem("theme", theme);
    apply(theme);
  });
  apply(stored());
}
