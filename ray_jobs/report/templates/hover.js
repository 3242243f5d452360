(() => {
  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  for (const one of document.querySelectorAll("[title]")) {
    one.dataset.tip = one.title;
    one.removeAttribute("title");
  }
  const show = (event) => {
    const one = event.target.closest && event.target.closest("[data-tip]");
    tip.hidden = !one;
    if (!one) return;
    tip.textContent = one.dataset.tip;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const below = event.clientY + 18;
    const top = below + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : below;
    tip.style.transform = `translate(${Math.max(8, left)}px, ${Math.max(8, top)}px)`;
  };
  addEventListener("pointermove", show);
  addEventListener("pointerdown", show);
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  const unfold = () => {
    const one = location.hash && document.getElementById(location.hash.slice(1));
    if (one && one.tagName === "DETAILS") one.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const one of folded) one.open = true;
  });
  addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
})();
