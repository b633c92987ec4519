package oracle

import (
	"regexp"
	"strings"
)

// rule makes equal what is different in every run. Rules apply in their order.
type rule struct {
	what *regexp.Regexp
	word string
}

var rules = []rule{
	{regexp.MustCompile(`SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}`), "TOKEN"},
	{regexp.MustCompile(`SWMKEY-1-[0-9A-Za-z+/]+`), "KEY"},
	{regexp.MustCompile(`(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----`), "CERTIFICATE"},
	{regexp.MustCompile(`sha256:[0-9a-f]{64}`), "sha256:DIGEST"},
	{regexp.MustCompile(`"(CertIssuerSubject|CertIssuerPublicKey)": "[A-Za-z0-9+/=]+"`), `"$1": "BASE64"`},
	{regexp.MustCompile(`(Issuer (Subject|Public Key):\s+)[A-Za-z0-9+/=]+`), "${1}BASE64"},
	{regexp.MustCompile(`vxlanid_list": "\d+"`), `vxlanid_list": "VNI"`},
	{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "HEXID"},
	{regexp.MustCompile(`\b[0-9a-z]{25}\b`), "ID"},
	{regexp.MustCompile(`unix://\S*\.sock\b`), "unix://SOCKET"},
	// 2026-11-25T15:05:43.123456789Z and 2026-11-25 15:05:43.123456789 +0000 utc
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 (UTC|utc))`), "TIME"},
	{regexp.MustCompile(`(?i)\b(\d+|about an?|less than a) (second|minute|hour)s?( ago)?`), "AGO"},
	{regexp.MustCompile(`\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b`), "MAC"},
	{regexp.MustCompile(`\b(\d{1,3}\.){3}\d{1,3}\b`), "ADDR"},
	{regexp.MustCompile(`("Index": )\d+`), "${1}INDEX"},
	{regexp.MustCompile(`  +`), "  "},
	{regexp.MustCompile(`(?m)[ \t]+$`), ""},
	// The first column of tables, and lists of ids alone, where one in fifty has no digit.
	{regexp.MustCompile(`(?m)^[0-9a-z]{12}($|  )`), "ID$1"},
}

// shortID are the twelve characters of ids in tables. Words of that length have no digit, or nothing else.
var shortID = regexp.MustCompile(`\b[0-9a-z]{12}\b`)

// normal gives a text as it is compared. The variables are those of the commands; where their values are printed, their
// names are.
func normal(text string, variables map[string]string) string {
	for _, name := range []string{"WORKER", "MANAGER", "N"} {
		if v := variables[name]; v != "" {
			text = strings.ReplaceAll(text, v, "$"+name)
		}
	}
	for _, r := range rules {
		text = r.what.ReplaceAllString(text, r.word)
	}
	return shortID.ReplaceAllStringFunc(text, func(s string) string {
		if strings.ContainsAny(s, "0123456789") && strings.ContainsAny(s, "abcdefghijklmnopqrstuvwxyz") {
			return "ID"
		}
		return s
	})
}
