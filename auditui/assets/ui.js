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

// Going to another moment of the same page, without loading all of it anew.
let going = 0;
async function go(address, push = true) {
  const mine = ++going;
  try {
    const response = await fetch(address, { headers: { Accept: 'text/html' } });
    const text = await response.text();
    if (mine !== going) return;
    const next = new DOMParser().parseFromString(text, 'text/html');
    const main = $('#main', next);
    if (!main) { location.href = address; return; }
    const focused = document.activeElement?.id;
    document.title = next.title;
    $('#main').replaceWith(main);
    if (push) history.pushState(null, '', address);
    enhance(main);
    if (focused) document.getElementById(focused)?.focus();
  } catch {
    if (mine === going) location.href = address;
  }
}
addEventListener('popstate', () => { if ($('#slider, #time-slider')) go(location.href, false); });

// The slider of a row snaps to its versions.
function rowSlider(root) {
  const slider = $('#slider', root);
  if (!slider) return;
  const versions = $$('a[data-version]', root);
  slider.hidden = false;
  const tell = () => {
    const label = versions[slider.value];
    if (!label) return;
    $('#slider-label', root).replaceChildren(...[...label.childNodes].map((node) => node.cloneNode(true)));
    slider.setAttribute('aria-valuetext', label.textContent.trim());
  };
  tell();
  slider.addEventListener('input', tell);
  slider.addEventListener('change', () => go(versions[slider.value].href));
}

// The slider of a table goes over time.
function timeSlider(root) {
  const slider = $('#time-slider', root);
  if (!slider) return;
  slider.hidden = false;
  const at = () => new Date(Number(slider.value));
  const tell = () => {
    $('#slider-label', root).textContent = inZone.format(at());
    slider.setAttribute('aria-valuetext', inZone.format(at()));
  };
  tell();
  slider.addEventListener('input', tell);
  slider.addEventListener('change', () => {
    const to = new URL(location.href);
    if (slider.value === slider.max) to.searchParams.delete('as-of');
    else to.searchParams.set('as-of', at().toISOString());
    go(to.href);
  });
}

// The live tail. Events are drawn some times a second, and the list is bounded, so that a thousand
// a second do not hold the page up.
const mostLines = 300;
function tail(root) {
  const table = $('#tail', root);
  if (!table) return;
  const body = $('tbody', table);
  const state = $('#tail-state');
  const pause = $('#pause');
  const events = new URL(table.dataset.events, location.href);
  let source, cursor = '', waiting = [], seen = 0, drawing = false;

  const say = (text, bad = false) => { state.textContent = text; state.classList.toggle('bad', bad); };
  const element = (name, content, properties = {}) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...[content].flat().filter((part) => part !== '' && part != null));
    return made;
  };
  const link = (to, text, properties) => element('a', element('bdi', text), { href: new URL(to, events).href, ...properties });
  const filtered = (name, value) => link(`../?${new URLSearchParams({ [name]: value })}`, value);
  const notes = { null: 'NULL', empty: 'empty text', none: '–', hidden: 'hidden', masked: 'masked', unknown: 'unknown' };
  const value = (v) => {
    if (v.Kind === 'text') return [element('bdi', v.Text, { className: 'v' }), v.Size ? element('span', '…', { className: 'cut' }) : ''];
    return [element('span', notes[v.Kind] ?? `withheld (${v.Text})`, { className: 'v note' })];
  };
  const column = (c) => {
    const parts = [element('span', c.Name, { className: 'name' }), ' '];
    if (c.Old.Kind !== 'none') parts.push(...value(c.Old));
    if (c.Old.Kind !== 'none' && c.New.Kind !== 'none') parts.push(' → ');
    if (c.New.Kind !== 'none') parts.push(...value(c.New));
    return element('span', parts, { className: 'col' });
  };
  const line = (c) => {
    const row = document.createElement('tr');
    row.dataset.line = '';
    const time = element('time', inZone.format(new Date(c.At)), { dateTime: c.At, title: c.At });
    const who = c.User ? filtered('user', c.User) : element('span', c.Stamped ? 'nobody named' : 'no context', { className: c.Stamped ? 'note' : 'flag' });
    if (c.Name && c.User) who.firstChild.textContent = c.Name;
    const key = c.KeyHidden ? 'masked' : c.RowLink ? link(c.RowLink, c.Key, { className: 'key row-link' }) : c.Key;
    row.append(
      element('td', element('a', time, { className: 'open', href: new URL(c.Link, events).href })),
      element('td', who),
      element('td', element('span', c.Operation, { className: `op op-${c.Operation}` })),
      element('td', [filtered('table', c.Table), ' ', key]),
      element('td', (c.Columns ?? []).flatMap((each) => [column(each), ' ']), { className: 'cols' }),
      element('td', [c.Endpoint, ' ', c.Request ? link(c.RequestLink, c.Request) : '']),
    );
    return row;
  };
  const draw = () => {
    drawing = false;
    const fresh = waiting.splice(0, waiting.length).slice(-mostLines).reverse();
    body.prepend(...fresh.map(line));
    while (body.childElementCount > mostLines) body.lastElementChild.remove();
    $('#tail-count').textContent = `${seen.toLocaleString()} changes seen${seen > mostLines ? `, the newest ${mostLines} are shown` : ''}`;
  };
  const open = () => {
    const from = new URL(events);
    if (cursor) from.searchParams.set('after', cursor);
    source = new EventSource(from);
    source.addEventListener('begin', (event) => { cursor = event.lastEventId || cursor; say('Following.'); });
    source.onmessage = (event) => {
      cursor = event.lastEventId;
      const changes = JSON.parse(event.data);
      seen += changes.length;
      waiting.push(...changes);
      if (!drawing) { drawing = true; setTimeout(() => requestAnimationFrame(draw), seen > mostLines ? 200 : 0); }
    };
    source.onerror = () => {
      say(source.readyState === EventSource.CLOSED ? 'The stream was refused. Trying again…' : 'The stream broke off. Trying again…', true);
      if (source.readyState === EventSource.CLOSED) { source.close(); setTimeout(() => { if (!paused()) open(); }, 2000); }
    };
  };
  const paused = () => pause.dataset.on === 'yes';
  pause.hidden = false;
  pause.onclick = () => {
    pause.dataset.on = paused() ? 'no' : 'yes';
    pause.textContent = paused() ? 'Resume' : 'Pause';
    if (paused()) { source.close(); say('Paused. Nothing is lost: it goes on from here.'); } else { say('Catching up…'); open(); }
  };
  addEventListener('pagehide', () => source.close());
  open();
}

function enhance(root) {
  current = -1;
  showTimes(root);
  rowSlider(root);
  timeSlider(root);
}

const help = $('#help-button');
if (help) { help.hidden = false; help.onclick = keys['?']; }
enhance(document);
tail(document);
savedFilters();
