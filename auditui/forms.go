package auditui

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hindsight-go/audit"
)

// formTime is for how long the form of a plan may be sent.
const formTime = 12 * time.Hour

// errForm is for a form that was not made by this UI for whoever sends it.
var errForm = errors.New("auditui: the form is not one of ours")

// digest is a short fingerprint of texts that tells nothing of them.
func (h *Handler) digest(parts ...string) string {
	mac := hmac.New(sha256.New, h.cfg.Secret)
	for _, part := range parts {
		mac.Write(strconv.AppendInt(nil, int64(len(part)), 10))
		mac.Write([]byte{':'})
		mac.Write([]byte(part))
	}
	return hex.EncodeToString(mac.Sum(nil)[:8])
}

// token signs a form: who may send it, what is done, once, until when, and what has to be
// typed for it.
func (q *request) token(query, hash, key, need, expires string) string {
	mac := hmac.New(sha256.New, q.cfg.Secret)
	text, _ := json.Marshal([]string{"form", q.access.User, query, hash, key, need, expires}) // strings: nothing that fails
	mac.Write(text)
	return hex.EncodeToString(mac.Sum(nil))
}

// sign makes the form of a plan.
func (q *request) sign(view *undoView, plan *audit.Plan) {
	view.Hash, view.Key = plan.Hash, "ui-"+rand.Text()
	if view.Count > q.cfg.ConfirmRows || overwrites(plan) {
		view.Need = strconv.Itoa(view.Count)
	}
	view.Expires = strconv.FormatInt(time.Now().Add(formTime).Unix(), 10)
	view.Token = q.token(view.Query, view.Hash, view.Key, view.Need, view.Expires)
}

// overwrites reports whether later work is overwritten.
func overwrites(plan *audit.Plan) bool {
	return slices.ContainsFunc(plan.Conflicts, func(c audit.Conflict) bool { return c.Resolution == audit.Overwrite })
}

// signed reports whether a form is one that sign has made for whoever sends it, for the
// plan of this address.
func (q *request) signed(form url.Values) bool {
	want := q.token("?"+q.undoQuery().Encode(), form.Get("hash"), form.Get("key"), form.Get("need"), form.Get("expires"))
	if !hmac.Equal([]byte(want), []byte(form.Get("token"))) {
		return false
	}
	expires, err := strconv.ParseInt(form.Get("expires"), 10, 64)
	return err == nil && time.Now().Unix() < expires
}

// conflictID names a conflict in an address.
func (q *request) conflictID(c *audit.Conflict) string {
	parts := []string{c.Kind.String(), c.Table, c.Column, c.Constraint, keyJSON(c.Key)}
	if c.Other != nil {
		parts = append(parts, c.Other.Table, keyJSON(c.Other.Key))
	}
	// It stays the same in every instance and for good, as addresses are kept.
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:6])
}

// keyJSON is a key as a JSON array.
func keyJSON(key []string) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(key) // strings into memory: nothing that fails
	return strings.TrimSpace(b.String())
}
