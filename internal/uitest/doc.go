// Package uitest tests auditui in a real Chromium. It is a module of its own, so that what
// drives the browser is no dependency of the SDK.
//
// The browser is the one that CHROMIUM names, or chromium, chromium-browser or
// google-chrome on PATH. There is no test without one: they fail, and do not skip.
//
// AUDIT_TEST_UI_CHANGES is the size of the large history, 100,000 by default, and
// AUDIT_TEST_UI_PAGED of the one that is read from end to end and back, 10,000 by default.
// AUDIT_UI_SCREENSHOTS names a directory for pictures of the main pages.
package uitest
