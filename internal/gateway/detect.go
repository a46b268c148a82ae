package gateway

import "isle"

// Detectors look for what has the shape, and where there is one the checksum,
// of something that should not leave: payment cards, account numbers, tokens.
// They are a net for what no mask names, and no boundary: what is encoded,
// split or spelled otherwise passes.
//
// The zero value looks for nothing. A Detectors may be used by many goroutines.
type Detectors struct {
	card, iban, token bool
}

// NewDetectors takes the names that a connection's detect has: "card", "iban",
// "token". The error's code is isle.Invalid.
func NewDetectors(names []string) (Detectors, error) {
	var d Detectors
	for _, n := range names {
		switch n {
		case "card":
			d.card = true
		case "iban":
			d.iban = true
		case "token":
			d.token = true
		default:
			return Detectors{}, isle.Errorf(isle.Invalid, "detect: %q is not a detector", n).WithHint("there are card, iban and token")
		}
	}
	return d, nil
}

// Any reports whether anything is looked for.
func (d Detectors) Any() bool { return d.card || d.iban || d.token }

// The classes of bytes that the scan tells apart.
const (
	isDigit = 1 << iota
	isUpper
	isLower
	isWord // letters and digits
	isSign // "_" and "-", which tokens have as well
)

// classes is what each byte is.
var classes = func() (t [256]byte) {
	for c := range t {
		switch {
		case c >= '0' && c <= '9':
			t[c] = isDigit | isWord
		case c >= 'A' && c <= 'Z':
			t[c] = isUpper | isWord
		case c >= 'a' && c <= 'z':
			t[c] = isLower | isWord
		case c == '_' || c == '-':
			t[c] = isSign
		}
	}
	return t
}()

// Mask replaces what is found in b by fill, in place: of a card all but the last
// four digits, of an account number all but the country, of a token all after
// its prefix. Lengths stay. It returns how many were found.
func (d Detectors) Mask(b []byte, fill byte) (found int) {
	for i := 0; i < len(b); {
		class := classes[b[i]]
		if class&isWord == 0 {
			i++
			continue
		}
		end := i
		switch {
		case class&isDigit != 0:
			if d.card {
				end = maskCard(b, i, fill)
			}
		default:
			if d.iban && len(b)-i >= 15 && classes[b[i+2]]&isDigit != 0 {
				end = maskIBAN(b, i, fill)
			}
			if d.token && end == i {
				end = maskToken(b, i, fill)
			}
		}
		if end > i {
			found++
			i = end
			continue
		}
		// On to the next beginning: of a word, or of a number inside one.
		for i++; i < len(b); i++ {
			if c := classes[b[i]]; c&isWord == 0 || c&isDigit != 0 && classes[b[i-1]]&isDigit == 0 {
				break
			}
		}
	}
	return found
}

// maskCard masks a card number that begins at i, and returns its end, or i.
func maskCard(b []byte, i int, fill byte) int {
	if i > 1 && b[i-1] == '.' && classes[b[i-2]]&isDigit != 0 {
		return i // the decimals of a number
	}
	var digits [19]byte
	n, end, length := 0, i, 0
	for j := i; j < len(b) && n < len(digits); j++ {
		if classes[b[j]]&isDigit == 0 {
			if (b[j] == ' ' || b[j] == '-') && j+1 < len(b) && classes[b[j+1]]&isDigit != 0 {
				continue
			}
			break
		}
		digits[n] = b[j] - '0'
		n++
		if n >= 13 && (j+1 == len(b) || classes[b[j+1]]&isDigit == 0) && issued(digits[:n]) && luhn(digits[:n]) {
			end, length = j+1, n
		}
	}
	for j, k := i, 0; j < end; j++ {
		if classes[b[j]]&isDigit != 0 {
			if k++; k <= length-4 {
				b[j] = fill
			}
		}
	}
	return end
}

// luhn reports whether the last digit is the check digit (ISO/IEC 7812-1,
// annex B).
func luhn(digits []byte) bool {
	sum := 0
	for i, d := range digits {
		v := int(d)
		if (len(digits)-i)%2 == 0 {
			if v *= 2; v > 9 {
				v -= 9
			}
		}
		sum += v
	}
	return sum%10 == 0
}

// issued reports whether a card network gives numbers that begin so and are so
// long (ISO/IEC 7812-1, and the networks' own tables).
func issued(d []byte) bool {
	two := int(d[0])*10 + int(d[1])
	three := two*10 + int(d[2])
	four := three*10 + int(d[3])
	n := len(d)
	switch {
	case d[0] == 4: // Visa
		return n == 13 || n == 16 || n == 19
	case two >= 51 && two <= 55 || four >= 2221 && four <= 2720: // Mastercard
		return n == 16
	case two == 34 || two == 37: // American Express
		return n == 15
	case three >= 300 && three <= 305 || three == 309 || two == 36 || two == 38 || two == 39: // Diners Club
		return n >= 14
	case four >= 3528 && four <= 3589: // JCB
		return n >= 16
	case four == 6011 || three >= 644 && three <= 649 || two == 65: // Discover
		return n >= 16
	case two == 62 || two == 81: // UnionPay
		return n >= 16
	case two == 50 || two >= 56 && two <= 58 || two == 63 || two == 67: // Maestro
		return true
	case four >= 2200 && four <= 2204: // Mir
		return n >= 16
	}
	return false
}

// maskIBAN masks an account number (ISO 13616) that begins at i, and returns its
// end, or i.
func maskIBAN(b []byte, i int, fill byte) int {
	if classes[b[i]]&isWord == 0 || classes[b[i+1]]&isDigit != 0 || classes[b[i+1]]&isWord == 0 || classes[b[i+3]]&isDigit == 0 {
		return i
	}
	want := ibanLength(b[i]&^0x20, b[i+1]&^0x20)
	if want == 0 {
		return i
	}
	var text [34]byte
	n, j := 0, i
	for ; j < len(b) && n < want; j++ {
		c := b[j]
		if classes[c]&isWord == 0 {
			if (c == ' ' || c == '-') && n >= 4 && j+1 < len(b) && classes[b[j+1]]&isWord != 0 {
				continue
			}
			return i
		}
		if classes[c]&isLower != 0 {
			c &^= 0x20
		}
		text[n] = c
		n++
	}
	if n < want || j < len(b) && classes[b[j]]&isWord != 0 || !mod97(text[:n]) {
		return i
	}
	for k := i + 2; k < j; k++ {
		if classes[b[k]]&isWord != 0 {
			b[k] = fill
		}
	}
	return j
}

// mod97 checks the two check digits (ISO/IEC 7064, MOD 97-10).
func mod97(iban []byte) bool {
	rest := 0
	for k := range iban {
		c := iban[(k+4)%len(iban)]
		if c >= 'A' {
			rest = (rest*100 + int(c-'A') + 10) % 97
		} else {
			rest = (rest*10 + int(c-'0')) % 97
		}
	}
	return rest == 1
}

// ibanLength is how long the account numbers of a country are (the IBAN
// registry of SWIFT), 0 if it has none.
func ibanLength(a, b byte) int {
	const registry = "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27" +
		"GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30" +
		"NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20YE30"
	for k := 0; k < len(registry); k += 4 {
		if registry[k] == a && registry[k+1] == b {
			return int(registry[k+2]-'0')*10 + int(registry[k+3]-'0')
		}
	}
	return 0
}
