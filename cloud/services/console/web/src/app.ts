// Loaded by every page: htmx for the parts that change, and the theme switch.
import "htmx.org";

const root = document.documentElement;

function theme(choice: string | null): void {
  if (choice === "light" || choice === "dark") root.dataset.theme = choice;
  else delete root.dataset.theme;
}

document.querySelector("#theme")?.addEventListener("click", () => {
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const next = dark ? "light" : "dark";
  localStorage.setItem("theme", next);
  theme(next);
  document.dispatchEvent(new CustomEvent("theme"));
});
