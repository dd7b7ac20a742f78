// Everything works without this file but the live tail and dragging the slider. It shows
// times in the zone of the browser, and adds keys and saved filters.

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

// Times: the zone of the browser, UTC on hover.
const inZone = new Intl.DateTimeFormat(undefined, {
  year: 'numeric', month: '2-digit', day: '2-digit', hour: '2-digit', minute: '2-digit', second: '2-digit', fractionalSecondDigits: 3,
});
function showTimes(root) {
  for (const time of $$('time[datetime]', root)) time.textContent = inZone.format(new Date(time.dateTime));
}

// Keys.
let current = -1;
function lines() { return $$('tr[data-line]'); }
function select(step) {
  const all = lines();
  if (!all.length) return;
  all[current]?.classList.remove('current');
  current = Math.max(0, Math.min(all.length - 1, current + step));
  all[current].classList.add('current');
  const open = $('a.open', all[current]) ?? $('a', all[current]);
  open?.focus({ preventScroll: true });
  all[current].scrollIntoView({ block: 'nearest' });
}
const keys = {
  '/': () => $('#first-filter')?.focus(),
  j: () => select(1),
  k: () => select(-1),
  r: () => $('a.row-link', lines()[current] ?? document.createElement('i'))?.click(),
  u: () => $('a.undo')?.click(),
  n: () => $('a[rel=next]')?.click(),
  p: () => $('a[rel=prev]')?.click(),
  '?': () => $('#help')?.showModal(),
};
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, select, textarea, dialog[open]')) return;
  const act = keys[event.key];
  if (act) { event.preventDefault(); act(); }
});

// Saved filters: names for addresses, kept by this browser.
function savedFilters() {
  const place = $('#saved');
  if (!place) return;
  const key = `audit-filters:${new URL('.', document.baseURI).pathname}`;
  const read = () => { try { return JSON.parse(localStorage.getItem(key)) ?? {}; } catch { return {}; } };
  const draw = () => {
    const all = read();
    place.replaceChildren();
    place.className = 'saved';
    for (const [name, query] of Object.entries(all)) {
      const link = document.createElement('a');
      link.href = `?${query}`;
      link.textContent = name;
      const forget = document.createElement('button');
      forget.type = 'button';
      forget.textContent = '×';
      forget.ariaLabel = `Forget the filter ${name}`;
      forget.onclick = () => { delete all[name]; localStorage.setItem(key, JSON.stringify(all)); draw(); };
      place.append(link, forget);
    }
    if (place.dataset.query) {
      const save = document.createElement('button');
      save.type = 'button';
      save.textContent = 'Save this filter';
      save.onclick = () => {
        const name = prompt('A name for this filter');
        if (name) { all[name] = place.dataset.query; localStorage.setItem(key, JSON.stringify(all)); draw(); }
      };
      place.append(save);
    }
    place.hidden = !place.childElementCount;
  };
  draw();
}

// Fields that are empty have no place in an address.
document.addEventListener('submit', (event) => {
  if (event.target.method !== 'get') return;
  for (const field of $$('input, select', event.target)) if (!field.value && field.name) field.disabled = true;
  setTimeout(() => $$('[disabled]', event.target).forEach((field) => { field.disabled = false; }));
});

const help = $('#help-button');
if (help) { help.hidden = false; help.onclick = keys['?']; }
showTimes(document);
savedFilters();
