package ext4

import "encoding/binary"

// xattrMagic begins extended attributes (h_magic).
const xattrMagic = 0xEA020000

// xattrUser is the name index of attributes whose names begin with "user.".
const xattrUser = 1

// xattrs are the attributes of an inode that are users': "user." and a name. Of
// others, which say what a program may do or who may do what, only how many there
// are is said.
func (m *Image) xattrs(i *inode) (user map[string]string, others int, err error) {
	user = map[string]string{}
	if i.xattr != nil {
		if others, err = readXattrs(i.xattr, i.xattr, user); err != nil {
			return nil, 0, err
		}
	}
	if i.xblock == 0 {
		return user, others, nil
	}
	b, err := m.block(i.xblock)
	if err != nil {
		return nil, 0, err
	}
	if binary.LittleEndian.Uint32(b) != xattrMagic {
		return nil, 0, broken("the attributes of inode %d are none", i.number)
	}
	more, err := readXattrs(b[32:], b, user)
	return user, others + more, err
}

// readXattrs reads entries, whose values lie in values.
func readXattrs(b, values []byte, user map[string]string) (others int, err error) {
	for len(b) >= 4 && binary.LittleEndian.Uint32(b) != 0 {
		if len(b) < 16 {
			return 0, broken("an attribute is cut off")
		}
		length, index := int(b[0]), b[1]
		offset, inum, size := int(binary.LittleEndian.Uint16(b[2:])), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
		if next := (16 + length + 3) &^ 3; inum != 0 || next > len(b) || int64(offset)+int64(size) > int64(len(values)) {
			return 0, broken("an attribute is outside of its place")
		} else if name := string(b[16 : 16+length]); index == xattrUser && validName(name) {
			user["user."+name] = string(values[offset : offset+int(size)])
			b = b[next:]
		} else {
			others++
			b = b[next:]
		}
	}
	return others, nil
}
