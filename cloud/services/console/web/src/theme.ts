// Applies the chosen theme before the page is painted. A script of its own, and not a module, which
// would run only after the page has been shown in the other theme.
{
  const choice = localStorage.getItem("theme");
  if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
}
