// Package auditui shows the history in a browser: what happened to a record, who did it
// and in which request, how it looked at a moment, and what stands in the way of undoing
// it. It is an [http.Handler] to be mounted behind the login that a program has:
//
//	ui, err := auditui.New(client, auditui.Config{
//		Access: func(r *http.Request) (auditui.Access, error) {
//			s, ok := sessionOf(r)
//			if !ok {
//				return auditui.Access{}, auditui.ErrUnauthorized
//			}
//			return auditui.Access{User: s.UserID, Values: true, Revert: s.Can("audit.revert")}, nil
//		},
//	})
//	mux.Handle("/admin/audit/", http.StripPrefix("/admin/audit", ui))
//
// # Access
//
// There is no open default. [Config.Access] is asked for every page, asset and stream, and
// says who asks and what they may see: which tables, which changes, values or only that
// something changed, exports, reverts. What somebody may not see is not there: its address
// answers 404.
//
// # Pages
//
// Everything that a page shows is in its address, so that it can be sent to a colleague
// or kept. Pages are made by the server and work without JavaScript, except for the live
// tail and dragging the slider. They load nothing from elsewhere, and their
// Content-Security-Policy allows no inline script.
//
// Links are relative, so the handler may be mounted at any path that ends in a slash, and
// stand behind a proxy that strips a prefix.
//
// # What is logged
//
// Failures, with the route and the kind of the error. Never a value, a key or an id.
package auditui
