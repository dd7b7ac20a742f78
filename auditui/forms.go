package auditui

import (
	"crypto/aes"
	"crypto/cipher"
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
	view.Hash, view.Key = q.seal(plan.Hash), "ui-"+rand.Text()
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

// seal encrypts the hash of a plan: whoever knows all of a plan but a value that is hidden
// could find the value out by it.
func (h *Handler) seal(hash string) string {
	return hex.EncodeToString(h.sealer.Seal(nil, nil, []byte(hash), nil))
}

// unseal is what was sealed, or "".
func (h *Handler) unseal(sealed string) string {
	raw, err := hex.DecodeString(sealed)
	if err != nil {
		return ""
	}
	hash, err := h.sealer.Open(nil, nil, raw, nil)
	if err != nil {
		return ""
	}
	return string(hash)
}

// newSealer makes what seals from the secret of forms.
func newSealer(secret []byte) (cipher.AEAD, error) {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("the hashes of plans"))
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// signed reports whether a form is one that sign has made for whoever sends it, for the
// plan of this address, and returns the hash of that plan.
func (q *request) signed(form url.Values) (hash string, ok bool) {
	want := q.token("?"+q.undoQuery().Encode(), form.Get("hash"), form.Get("key"), form.Get("need"), form.Get("expires"))
	if !hmac.Equal([]byte(want), []byte(form.Get("token"))) {
		return "", false
	}
	hash = q.unseal(form.Get("hash"))
	expires, err := strconv.ParseInt(form.Get("expires"), 10, 64)
	return hash, hash != "" && err == nil && time.Now().Unix() < expires
}

// conflictID names a conflict in an address.
func (q *request) conflictID(c *audit.Conflict) string {
	parts := []string{c.Kind.String(), c.Table, c.Column, c.Constraint, keyJSON(c.Key)}
	if c.Other != nil {
		parts = append(parts, c.Other.Table, keyJSON(c.Other.Key))
	}
	// A key may be one that is hidden. With another secret, nothing is decided any more.
	return q.digest(append([]string{"conflict"}, parts...)...)[:12]
}

// keyJSON is a key as a JSON array.
func keyJSON(key []string) string {
	var b strings.Builder
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(key) // strings into memory: nothing that fails
	return strings.TrimSpace(b.String())
}
