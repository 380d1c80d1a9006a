<!-- Source files in the user's turn, with the words that end it, and an answer, behind them. -->
<pml>
<schema name="code">
  <system>You read source files, and write code as you are told.</system>
  <user>
    These are the files of a library.

    <module name="book.py"><![CDATA[
class Book:
    """A book of the library, and who has it."""

    def __init__(self, title: str, author: str, year: int):
        self.title = title
        self.author = author
        self.year = year
        self.reader = None

    def lend(self, reader):
        if self.reader is not None:
            raise ValueError(f"{self.title} is lent already")
        self.reader = reader
]]></module>
    <module name="reader.py"><![CDATA[
class Reader:
    """Somebody who borrows books, at most five at once."""

    def __init__(self, name: str):
        self.name = name
        self.books = []

    def borrow(self, book):
        if len(self.books) == 5:
            raise ValueError(f"{self.name} has five books")
        book.lend(self)
        self.books.append(book)
]]></module>
    <module name="store.py"><![CDATA[
class Store:
    """All books, by their titles."""

    def __init__(self):
        self.books = {}

    def add(self, book):
        self.books[book.title] = book

    def find(self, word: str):
        return [book for title, book in self.books.items() if word in title]
]]></module>

    Read them. Then write what I ask for, and nothing else.
  </user>
  <assistant>I have read the files. What shall I write?</assistant>
</schema>
<prompt schema="code">
  <book.py/><reader.py/><store.py/>
  <user>Write a method of Reader that gives a book back.</user>
</prompt>
</pml>
