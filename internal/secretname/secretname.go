// Package secretname judges by a name whether the value under it is a secret:
// a password, a token, a key, the number of a card. It knows names in English as
// programs write them, in snake_case, camelCase, kebab-case or all in one.
package secretname

import (
	"slices"
	"strings"
	"unicode"
)

// parts make a name secret wherever they stand in it, also within a word, as in
// "userpassword" and "csrfmiddlewaretoken". No ordinary word contains them but
// those of innocent.
var parts = []string{
	"password", "passwd", "passphrase", "passcode", "secret", "token", "credential", "authorization", "cookie",
	"apikey", "accesskey", "privatekey", "secretkey", "sessionid", "sessid", "creditcard", "cardnumber",
	"connectionstring", "socialsecurity",
}

// innocent words contain one of parts and are no secrets. Language models count
// tokens.
var innocent = []string{
	"undersecretary", "secretary", "secretaries", "secretariat", "tokenizer", "tokenized", "tokenize", "tokenization",
	"prompttokens", "completiontokens", "inputtokens", "outputtokens", "totaltokens",
}

// words make a name secret as whole words, or as a row of them: they are part
// of too many ordinary words.
var words = []string{
	"pass", "pwd", "pw", "pin", "otp", "totp", "ssn", "cvv", "cvc", "iban", "jwt", "bearer", "csrf", "xsrf", "sid",
	"salt", "hmac", "dsn", "mnemonic", "seed phrase", "hub signature",
	"signing key", "encryption key", "master key", "ssh key", "account key", "license key", "hmac key", "recovery key",
	"aes key", "auth key", "shared key", "client key", "storage key", "webhook key",
	"auth code", "mfa code", "backup code", "recovery code", "verification code", "security code", "one time code",
	"security answer", "security question answer", "oauth verifier", "code verifier",
	"database url", "redis url", "mongo uri", "mongodb uri", "postgres url", "amqp url",
}

// whole names are secret only if they are all of the name: as a part, they say
// what the rest of the name is about.
var whole = []string{"session", "session id", "auth"}

// about are first and last words of names that say something about a secret,
// such as when it was changed: "max_tokens", "password_changed_at".
var (
	aboutFirst = []string{"max", "min", "has", "is", "num"}
	aboutLast  = []string{
		"at", "on", "count", "used", "type", "name", "expiry", "expires", "expiration", "ttl", "timeout", "duration", "length",
		"strength", "policy", "required", "enabled", "consent", "accepted",
	}
)

// Likely reports whether the value under name is likely a secret. The name may
// hold the path to it, as "user[password]" does.
func Likely(name string) bool {
	split := Split(name)
	if len(split) == 0 {
		return false
	}
	for _, row := range whole {
		if Same(split, Split(row)) {
			return true
		}
	}
	first, last := split[0], split[len(split)-1]
	if len(split) > 1 && (slices.Contains(aboutFirst, first) || slices.Contains(aboutLast, last)) {
		return false
	}
	plain := Plain(name)
	for _, word := range innocent {
		plain = strings.ReplaceAll(plain, word, " ")
	}
	for _, part := range parts {
		if strings.Contains(plain, part) {
			return true
		}
	}
	for _, row := range words {
		if HasRow(split, Split(row)) {
			return true
		}
	}
	return false
}

// Split returns the words of a name, in lower case: "userAPIKey2" is user, api,
// key, 2.
func Split(name string) []string {
	var split []string
	var word []rune
	end := func() {
		if len(word) > 0 {
			split = append(split, strings.ToLower(string(word)))
		}
		word = word[:0]
	}
	runes := []rune(name)
	for i, r := range runes {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			end()
			continue
		}
		if len(word) > 0 {
			before := runes[i-1]
			nextLower := i+1 < len(runes) && unicode.IsLower(runes[i+1])
			if unicode.IsDigit(before) != unicode.IsDigit(r) ||
				unicode.IsUpper(r) && (unicode.IsLower(before) || unicode.IsUpper(before) && nextLower) {
				end()
			}
		}
		word = append(word, r)
	}
	end()
	return split
}

// Plain returns the letters and digits of a name, in lower case.
func Plain(name string) string {
	return strings.ToLower(strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return r
		}
		return -1
	}, name))
}

// HasRow reports whether the words of row stand in split one behind the other.
// The last of them may be a plural.
func HasRow(split, row []string) bool {
	for at := 0; at+len(row) <= len(split); at++ {
		if Same(split[at:at+len(row)], row) {
			return true
		}
	}
	return false
}

// Same reports whether two names have the same words, but for a plural of the last.
func Same(split, row []string) bool {
	if len(split) != len(row) || len(row) == 0 {
		return false
	}
	end := len(row) - 1
	for i := range end {
		if split[i] != row[i] {
			return false
		}
	}
	return split[end] == row[end] || split[end] == row[end]+"s"
}
