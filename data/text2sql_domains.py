"""The tables and the vocabulary of the built-in text-to-SQL rows.

`DOMAINS` describes one schema per block, in a small notation:

    [library]                            the schema's name, the group that a split keeps together
    author*                              a table, by its singular; `*` says that its rows are people
      name = @person                     a text column; `@` takes values from a pool; `name` or `title` names a row
      country = @country ; from {}       after `;`: how a question may say it, used after "are" or a noun
      birth_year = 1920..1995 ; year born           a number that dates the row: "born after 1950"
    book > author (written by)           a table that refers to another: "books written by authors ..."
      title = Dune, Silent River
      genre = fantasy, crime ; adj       a word that may stand before the noun: "fantasy books"
      pages = 90..900 ; count            a number of things: "more than 300 pages"
      price = 5.0..60.0 ; sum            another number; `sum`: a total makes sense; `longest/shortest`: superlatives
      due_on (due date, date due) = ?    a column that may be empty; in brackets: the words a question uses for it
      ~ pages * price                    two columns that may be combined, or compared where the sign is `-`
    loan > member (of) > book (for) = lent      a link between two tables: "members lent the book Dune"
"""

import re
from dataclasses import dataclass, field

POOLS = {
    "person": "Ann Lee, Omar Haddad, Maria Silva, John Carter, Yuki Tanaka, Priya Nair, Lena Fischer, Carlos Mendez, "
    "Grace Okafor, Tom Baker, Nina Petrova, David Cohen, Sara Lund, Ivan Horvat, Chloe Martin, Samuel Wright",
    "country": "Kenya, Norway, Peru, Japan, Canada, Italy, Brazil, India, Ghana, Spain, Chile, Greece, Poland, Vietnam",
    "city": "Lisbon, Denver, Osaka, Nairobi, Oslo, Lima, Toronto, Prague, Austin, Dublin, Seville, Hanoi, Leeds",
}

DOMAINS = """
[library]
author*
  name = @person
  country = @country ; from {}
  birth_year (birth year, year of birth) = 1920..1995 ; year born
book > author (written by)
  title = Dune, Silent River, The Glass Road, North Wind, Paper Moon
  genre = fantasy, crime, poetry, romance ; adj
  pages = 90..900 ; count

[clinic]
doctor*
  name = @person
  specialty = cardiology, dermatology, neurology, pediatrics ; working in {}
  hire_year (hire year, year of hire) = 1995..2023 ; year hired
visit > doctor (handled by)
  patient = @person
  reason = checkup, vaccination, injury, fever
  fee = 40..300 ; sum

[airline]
airline
  name = Blue Sky, Air Nova, Polar Jet, Sunwing, Delta Star
  country = @country ; from {}
  fleet_size = 10..400 ; largest/smallest
flight > airline (operated by)
  destination = @city ; flying to {}
  duration = 45..900 ; longest/shortest
  seats = 60..400 ; count

[school]
teacher*
  name = @person
  subject = history, biology, music, algebra ; teaching {}
  salary = 28000..90000 ; sum
student* > teacher (taught by)
  name = @person
  grade = 1..12
  age = 6..19
  email = ?

[farm]
farm
  name = Green Hill, Oak Hollow, Red Barn, Sunny Acres, Willow Creek
  region = north, south, coast, valley ; located in the {} region
  area = 20..900 ; sum, largest/smallest
animal > farm (kept on)
  name = Bella, Daisy, Rusty, Clover, Pepper
  species = cow, goat, sheep, horse
  weight = 20..800

[museum]
museum
  name = City Gallery, Tate Hall, Nova Museum, Harbor Museum, The Old Mint
  city = @city ; located in {}
  founded_year (founded year, founding year) = 1800..2010 ; year founded
painting > museum (shown in)
  title = Red Field, The Bridge, Winter Light, Still Life, Blue Door
  style = cubist, baroque, modern, realist ; adj
  height = 20..300 ; greatest/smallest
  width = 20..400 ; greatest/smallest
  ~ height * width
  ~ height - width

[esports]
team
  name = Night Owls, Iron Wolves, Pixel Kings, Storm Riders, Red Foxes
  region = Europe, Asia, Africa, Oceania ; from {}
  wins = 0..120 ; count
  losses = 0..120 ; count
  ~ wins - losses
  ~ wins + losses
player* > team (signed by)
  name = @person
  role = captain, support, sniper, scout
  rating = 900..2800

[hospital]
ward
  name = North Wing, Sunrise, Cedar, Maple, Lakeside
  floor = 1..9
  beds = 6..60 ; count
nurse* > ward (assigned to)
  name = @person
  shift = day, night, evening ; on the {} shift
  salary = 25000..70000 ; sum
  phone = ?

[hotel]
hotel
  name = Sea View, Grand Plaza, The Pines, Royal Inn, Casa Azul
  city = @city ; located in {}
  stars = 1..5 ; count
room > hotel (in)
  type = single, double, suite, family ; adj
  price = 40..500
  floor = 1..20

[restaurant]
dish
  name = Lemon Soup, Pad Thai, Beef Stew, Apple Tart, Green Curry
  course = starter, main, dessert, side
  price = 3.5..40.0
  calories = 80..1200 ; count
  chef = @person

[cinema]
director*
  name = @person
  country = @country ; from {}
  awards = 0..12 ; count
movie > director (directed by)
  title = Last Train, Dark Harbor, The Long Day, Golden City, Two Suns
  genre = comedy, drama, horror, thriller ; in the {} genre
  release_year (release year, year of release) = 1970..2024 ; year released
  budget = 1..200 ; sum

[music]
artist*
  name = @person
  country = @country ; from {}
  signed_year (signing year, year of signing) = 1960..2020 ; year signed
album > artist (recorded by)
  title = Echoes, Night Drive, Open Road, Silver Rain, First Light
  genre = rock, jazz, pop, folk ; adj
  sales = 1000..900000 ; count

[bank]
customer*
  name = @person
  city = @city ; living in {}
  age = 18..90
account > customer (held by)
  type = savings, checking, business, student ; adj
  balance = 0..90000 ; sum
  opened_year (opening year, year of opening) = 1995..2024 ; year opened

[realestate]
house
  address = 12 Oak Street, 8 Mill Lane, 45 Hill Road, 3 Park Avenue ; label
  city = @city ; located in {}
  price = 90000..900000 ; sum
  bedrooms = 1..8 ; count
  built_year (construction year, year of construction) = 1900..2023 ; year built

[gym]
trainer*
  name = @person
  specialty = yoga, boxing, pilates, cycling
  hourly_rate = 20..90
member* > trainer (coached by)
  name = @person
  plan = basic, premium, family, student ; on the {} plan
  visits = 0..200 ; count
  email = ?

[zoo]
keeper*
  name = @person
  section = reptiles, birds, mammals, fish
  salary = 24000..60000 ; sum
animal > keeper (looked after by)
  name = Leo, Kira, Momo, Zara, Tango
  species = lion, parrot, zebra, python
  age = 1..40

[university]
student*
  name = @person
  major = physics, law, art, economics ; majoring in {}
  entry_year (entry year, year of entry) = 2012..2024 ; year admitted
course
  title = Algebra, Optics, World History, Ethics, Databases
  credits = 2..12 ; count
enrollment > student (of) > course (for) = enrolled in
  score = 40..100

[shop]
product
  name = Desk Lamp, Steel Mug, Wall Clock, Canvas Bag, Oak Chair
  category = kitchen, garden, office, toys ; in the {} category
  price = 2.5..300.0
  stock (stock level) = 0..500 ; sum
  supplier = ?
  ~ price * stock

[orders]
customer*
  name = @person
  country = @country ; from {}
  phone = ?
order > customer (placed by)
  status = shipped, pending, cancelled, delivered ; adj
  amount = 5..900 ; sum, largest/smallest
  order_date = 2021..2024 ; date placed

[football]
club
  name = River United, Athletic Park, Hill Rovers, Real Norte, Port City
  city = @city ; based in {}
  founded_year (founded year, founding year) = 1880..1990 ; year founded
player* > club (signed by)
  name = @person
  position = goalkeeper, defender, midfielder, striker
  goals = 0..60 ; count
  age = 16..40

[matches]
match
  home_team = Lions, Tigers, Sharks, Bears, Eagles
  away_team = Wolves, Hawks, Bulls, Rams, Foxes
  home_goals = 0..7 ; count
  away_goals = 0..7 ; count
  stadium = North Arena, City Ground, Olympic Park
  ~ home_goals - away_goals
  ~ home_goals + away_goals

[company]
department
  name = Sales, Marketing, Research, Finance, Support
  city = @city ; located in {}
  budget = 50000..900000 ; sum, largest/smallest
employee* > department (working in)
  name = @person
  job = analyst, engineer, manager, clerk
  salary = 25000..140000 ; sum
  hire_year (hire year, year of hire) = 1998..2024 ; year hired

[projects]
employee*
  name = @person
  role = designer, tester, architect, planner
  rate = 20..150
project
  name = Atlas, Mercury, Beacon, Orchid, Falcon
  budget = 5000..400000 ; sum, largest/smallest
assignment > employee (of) > project (to) = assigned to
  hours = 5..400 ; count

[trains]
station
  name = Central, Riverside, Old Town, Airport, West Gate
  city = @city ; located in {}
  platforms = 1..20 ; count
train > station (leaving from)
  line = red, blue, express, coastal ; on the {} line
  speed = 60..320
  seats = 80..900 ; count

[rental]
car
  model = Fiesta, Corolla, Golf, Clio, Model S ; label
  fuel = petrol, diesel, electric, hybrid ; adj
  seats = 2..9 ; count
  daily_rate = 20..200
  mileage = 500..150000 ; sum

[insurance]
agent*
  name = @person
  region = north, south, east, west ; from the {} region
  service_years (years of service) = 1..35 ; count
policy > agent (sold by)
  holder = @person
  type = home, travel, health, car ; adj
  premium = 100..3000 ; sum

[wines]
winery
  name = Clos Rouge, Bella Vista, Stone Cellar, Monte Verde, Silver Oak
  country = @country ; from {}
  founded_year (founded year, founding year) = 1750..2005 ; year founded
wine > winery (made by)
  name = Noir Reserve, Alba, Old Vine, Sunset Rose, Brisa
  grape = merlot, syrah, malbec, riesling
  price = 6..200
  points = 75..100 ; count

[concerts]
band
  name = The Larks, Velvet Sky, Stone Echo, Paper Tigers, Lunar Tide
  genre = rock, jazz, punk, folk ; adj
  members = 2..12 ; count
venue
  name = Town Hall, Blue Note, The Cellar, Apollo, Dockside
  capacity = 100..9000 ; sum, largest/smallest
concert > band (by) > venue (at) = playing at
  ticket_price = 10..150

[weather]
reading
  station = Alpha, Harbor, Summit, Airport, Delta
  month = January, April, July, October ; taken in {}
  high_temp (high temperature) = 5..42
  low_temp (low temperature) = -20..20
  rainfall (rainfall level) = 0..300 ; sum
  ~ high_temp - low_temp

[energy]
plant
  name = Ridge Point, Sun Valley, Lake Dam, East Bay, Windy Hill
  source = solar, wind, hydro, coal ; adj
  capacity = 10..2000 ; sum, largest/smallest
  opened_year (opening year, year of opening) = 1960..2023 ; year opened
  country = @country ; located in {}

[software]
developer*
  name = @person
  language = Python, Rust, Java, Go
  experience (years of experience) = 1..30 ; count
bug > developer (assigned to)
  title = Login fails, Slow search, Broken link, Missing icon, Wrong total
  severity = low, medium, high, critical ; adj
  votes = 0..90 ; count
  closed_on (closing date) = ?

[apps]
app
  name = NoteBox, FitTrack, MapGo, PhotoFun, ChatNow
  category = games, finance, travel, health ; in the {} category
  rating = 1.0..5.0
  downloads = 1000..900000 ; count
  price = 0.5..30.0
  ~ price * downloads

[blog]
writer*
  name = @person
  country = @country ; from {}
  followers = 50..90000 ; count
post > writer (written by)
  title = Hello World, Travel Tips, My Garden, Cheap Meals, Night Photos
  topic = travel, food, science, sports ; about {}
  views = 100..90000 ; count
  comments = 0..300 ; count
  ~ views - comments

[podcasts]
host*
  name = @person
  city = @city ; living in {}
  age = 20..70
podcast > host (presented by)
  title = Deep Talk, Money Mind, Story Hour, Space Notes, True Paths
  language = English, French, Hindi, Spanish ; in {}
  episodes = 5..400 ; count

[games]
studio
  name = Moonlit, Brick House, Nine Lives, Open Gate, Tiny Giant
  country = @country ; from {}
  employees = 5..900 ; count
game > studio (developed by)
  title = Star Quest, Mud Racer, Castle Rise, Lost Signal, Puzzle Bay
  platform = mobile, console, desktop, arcade ; adj
  release_year (release year, year of release) = 1995..2024 ; year released
  score = 20..100

[pets]
owner*
  name = @person
  city = @city ; living in {}
  phone = ?
pet > owner (owned by)
  name = Rex, Luna, Milo, Coco, Bruno
  kind = dog, cat, rabbit, hamster
  age = 1..18
  weight = 1..60

[voting]
party
  name = Green Front, Unity, Progress, Liberty, New Dawn
  leader = @person
  founded_year (founded year, founding year) = 1900..2015 ; year founded
candidate* > party (nominated by)
  name = @person
  district = Northside, Harbor, Midtown, Lakeview ; running in {}
  votes = 500..90000 ; count

[geography]
country
  name = @country
  continent = Africa, Asia, Europe, America ; located in {}
  population = 1..900 ; sum, largest/smallest
river > country (flowing through)
  name = Alta, Tamba, Niva, Serra, Oro
  length = 50..6000 ; sum, longest/shortest
  depth = 2..90 ; greatest/smallest

[mountains]
mountain
  name = Grey Horn, Mount Elba, Sunpeak, Black Tooth, Silver Dome
  country = @country ; located in {}
  height = 1200..8800 ; greatest/smallest
  range = Alps, Andes, Rockies, Atlas ; in the {} range
  first_climbed (first climb) = ?

[space]
agency
  name = Orbita, Skyward, Nova Agency, Astra, Helix
  country = @country ; from {}
  budget = 100..9000 ; sum, largest/smallest
mission > agency (flown by)
  name = Pioneer, Comet One, Horizon, Ranger, Echo
  target = Moon, Mars, Venus, Jupiter ; sent to {}
  launch_year (launch year, year of launch) = 1960..2024 ; year launched
  crew_size = 1..8 ; largest/smallest

[chemistry]
element
  name = Iron, Neon, Copper, Helium, Zinc
  symbol = Fe, Ne, Cu, He
  state = solid, liquid, gas
  mass = 1..250
  melting_point = -200..3000
  boiling_point = -180..5000
  ~ boiling_point - melting_point

[garden]
plant
  name = Basil, Lavender, Sage, Marigold, Aloe
  type = herb, shrub, flower, vine
  height = 10..300 ; greatest/smallest
  price = 1..60
  water_days (watering interval) = 1..14

[cooking]
chef*
  name = @person
  cuisine = Thai, French, Mexican, Indian ; specialized in {}
  experience (years of experience) = 1..40 ; count
recipe > chef (created by)
  title = Spicy Noodles, Bean Chili, Fish Pie, Plum Cake, Corn Salad
  difficulty = easy, medium, hard ; adj
  minutes = 5..240 ; count

[courier]
driver*
  name = @person
  city = @city ; based in {}
  hire_year (hire year, year of hire) = 2005..2024 ; year hired
parcel > driver (delivered by)
  recipient = @person
  weight = 1..40 ; sum
  size = small, medium, large ; adj
  cost = 3..90 ; sum

[warehouse]
warehouse
  name = East Hub, Depot Nine, Harbor Store, Central Yard, Hill Depot
  city = @city ; located in {}
  capacity = 500..90000 ; sum, largest/smallest
item > warehouse (stored in)
  name = Copper Wire, Roof Tile, Paint Can, Door Handle, Pine Board
  quantity = 1..900 ; sum
  unit_price = 1..200
  ~ quantity * unit_price

[theater]
play
  title = The Storm, Empty House, King of Rain, Small Hours, Masks
  playwright = @person
  type = comedy, tragedy, musical, farce
show > play (of)
  show_date = 2021..2024 ; date held
  tickets_sold (tickets sold) = 20..900 ; count
  price = 10..120
  ~ tickets_sold * price

[actors]
actor*
  name = @person
  country = @country ; from {}
  age = 18..85
series
  title = Cold Case, Harbor Lights, Family Ties, Outpost, The Firm
  seasons = 1..15 ; count
role > actor (of) > series (in) = appearing in
  episodes = 1..90 ; count

[swimming]
swimmer*
  name = @person
  country = @country ; from {}
  age = 14..35
result > swimmer (set by)
  stroke = freestyle, butterfly, backstroke, medley ; adj
  distance = 50..1500 ; longest/shortest
  points = 100..990 ; count

[cycling]
rider*
  name = @person
  country = @country ; from {}
  weight = 50..90
race
  title = Alpine Tour, Coast Classic, Iron Loop, Spring Dash, Night Ride
  distance = 20..300 ; sum, longest/shortest
entry > rider (of) > race (for) = entered in
  finish_place (finishing place) = 1..80

[chess]
player*
  name = @person
  country = @country ; from {}
  rating = 1000..2800
  title = ?
  birth_year (birth year, year of birth) = 1950..2010 ; year born

[festivals]
festival
  name = Light Days, River Fest, Spring Beats, Folk Week, Film Fair
  city = @city ; held in {}
  visitors = 500..90000 ; count
  start_month = May, June, July, August ; starting in {}
  tickets = 100..90000 ; count
  ~ visitors - tickets

[factory]
factory
  name = Plant A, Lakeside Works, Iron Mill, Delta Works, North Plant
  country = @country ; located in {}
  workers = 20..3000 ; count
machine > factory (installed in)
  type = press, lathe, robot, mixer
  power (power rating) = 5..400
  install_year (installation year, year of installation) = 1985..2024 ; year installed

[repairs]
mechanic*
  name = @person
  level = junior, senior, master ; adj
  hourly_rate = 20..120
repair > mechanic (done by)
  car = Golf, Clio, Civic, Astra
  status = open, finished, waiting ; adj
  cost = 30..4000 ; sum
  hours = 1..40 ; count

[phones]
brand
  name = Nokira, Zento, Pearl, Volta, Lumix
  country = @country ; from {}
  founded_year (founded year, founding year) = 1950..2015 ; year founded
phone > brand (made by)
  model = X10, Nova 3, Edge, Lite 5, Max 7 ; label
  color = black, white, blue, red ; adj
  price = 90..1500
  storage (storage size) = 16..512

[laptops]
laptop
  model = AirBook, ZenPad, ProLine, SlimX, WorkMate ; label
  brand = Acer, Dell, Asus, Lenovo
  memory (memory size) = 4..64
  price = 300..3500
  screen_size = 11.0..17.5 ; largest/smallest
  discount = 10..400
  ~ price - discount

[elections]
city
  name = @city
  mayor = @person
  voters = 5000..900000 ; count
  turnout = 20..95
  region = north, south, coast, plains ; located in the {} region

[housing]
landlord*
  name = @person
  city = @city ; living in {}
  email = ?
apartment > landlord (owned by)
  street = Elm Street, Main Street, Bay Road, Lake Drive ; located on {}
  rent = 400..4000 ; sum
  rooms = 1..6 ; count
  floor = 0..12

[research]
lab
  name = Cell Lab, Quantum Lab, Ocean Lab, Brain Lab, Plasma Lab
  building = Newton, Curie, Darwin, Turing ; located in {}
  budget = 10000..900000 ; sum, largest/smallest
scientist* > lab (working in)
  name = @person
  field = physics, genetics, geology, optics
  papers = 0..150 ; count

[journals]
journal
  title = Nature Notes, Data Letters, Modern Physics, Open Health, Earth View
  publisher = Orion, Elmwood, Crown, Summit
  issues = 1..24 ; count
article > journal (published in)
  title = Deep Seas, Fast Sorting, Gene Maps, Cold Atoms, City Heat
  author = @person
  citations = 0..900 ; count
  pages = 3..60 ; count

[airports]
airport
  name = North Field, Bayview, Sky Harbor, Kingsford, Eastgate
  country = @country ; located in {}
  runways = 1..8 ; count
gate > airport (at)
  terminal = A, B, C, D ; in terminal {}
  capacity = 50..500 ; sum, largest/smallest
  status = open, closed, reserved ; adj

[ships]
port
  name = Saint Marc, Gulf Port, Porto Novo, Hanko, Sandbay
  country = @country ; located in {}
  depth = 5..40 ; greatest/smallest
ship > port (registered in)
  name = Sea Star, Aurora, Wave Runner, Orca, Northern Light
  type = cargo, ferry, tanker, cruise ; adj
  length = 20..400 ; longest/shortest
  built_year (construction year, year of construction) = 1960..2023 ; year built

[fishing]
boat
  name = Marlin, Blue Fin, Gull, Old Salt, Tide
  harbor = Eastport, Seaview, Cliffside, Sandy Cove ; from {}
  crew_size = 2..20 ; largest/smallest
catch > boat (brought in by)
  species = cod, tuna, salmon, herring
  weight = 10..5000 ; sum
  catch_date = 2020..2024 ; date landed

[bakery]
cake
  name = Honey Loaf, Plum Roll, Cocoa Bliss, Lemon Slice, Nut Crown
  flavor = chocolate, vanilla, lemon, almond
  price = 2.5..60.0
  cost = 1.0..30.0
  units_sold (units sold) = 5..900 ; count
  ~ price - cost
  ~ price * units_sold

[coffee]
farm
  name = La Loma, High Ridge, Santa Rita, Tres Rios, Morning Mist
  country = @country ; from {}
  altitude = 600..2200
coffee > farm (grown on)
  name = Dawn Blend, Dark Roast, Mocha, Geisha, Bourbon
  roast = light, medium, dark
  price = 5..60
  score = 70..98

[camping]
park
  name = Pine Valley, Bear Creek, Red Canyon, Moss Lake, Eagle Rock
  state = Utah, Maine, Oregon, Nevada ; located in {}
  area = 10..9000 ; sum, largest/smallest
campsite > park (in)
  name = River Bend, Hilltop, Fox Den, Sunset, Old Mill
  fee = 5..80
  tents = 2..60 ; count

[volunteers]
volunteer*
  name = @person
  skill = cooking, driving, nursing, teaching
  age = 16..80
event
  title = Beach Cleanup, Food Drive, Book Sale, Tree Day, Charity Run
  city = @city ; held in {}
signup > volunteer (of) > event (for) = registered for
  hours = 1..12 ; count

[courses]
instructor*
  name = @person
  country = @country ; from {}
  rating = 1.0..5.0
lesson > instructor (given by)
  title = Basic Knots, Oil Painting, Public Speaking, Guitar One, Clay Pots
  level = beginner, intermediate, advanced ; adj
  price = 10..300
  seats = 5..60 ; count

[lawfirm]
lawyer*
  name = @person
  specialty = tax, family, criminal, patent
  hourly_rate = 80..600
client*
  name = @person
  city = @city ; living in {}
case > lawyer (led by) > client (of) = working for
  status = open, won, lost, settled ; adj
  hours = 5..400 ; count

[pharmacy]
drug
  name = Calmex, Fluvane, Dorin, Pulmo, Zitrex
  form = tablet, syrup, cream, spray
  price = 2..150
  stock (stock level) = 0..900 ; sum
  maker = ?
  ~ price * stock

[vaccines]
patient*
  name = @person
  birth_year (birth year, year of birth) = 1935..2020 ; year born
  city = @city ; living in {}
vaccine
  name = FluGuard, Polivax, TetaShield, Hepro, Measlex
  doses = 1..4 ; count
injection > patient (of) > vaccine (with) = injected with
  given_year (injection year, year of injection) = 2010..2024 ; year given

[stocks]
company
  name = Acorn, Bluestone, Corelink, Dynapath, Everlight
  sector = energy, retail, mining, media ; in the {} sector
  revenue = 10..9000 ; sum
  profit = 1..900 ; sum
  employees = 10..90000 ; count
  ~ revenue - profit

[taxis]
driver*
  name = @person
  license = A, B, C, D
  rating = 1.0..5.0
trip > driver (made by)
  pickup = Airport, Old Town, Station, Harbor ; starting at {}
  distance = 1..60 ; sum, longest/shortest
  fare = 5..150 ; sum
  tip = 1..30 ; sum
  ~ fare + tip
  ~ fare * distance

[furniture]
designer*
  name = @person
  country = @country ; from {}
  birth_year (birth year, year of birth) = 1900..1995 ; year born
chair > designer (designed by)
  name = Arc, Fjord, Loop, Nest, Swan
  material = oak, steel, leather, plastic ; made of {}
  price = 50..2500

[language]
language
  name = Swahili, Catalan, Quechua, Tamil, Welsh
  family = Bantu, Romance, Celtic, Dravidian ; in the {} family
  speakers = 1000..900000 ; count
  letters = 18..60 ; count
  script = Latin, Arabic, Tamil, Cyrillic ; written in {}

[streaming]
user*
  name = @person
  country = @country ; from {}
  plan = free, basic, premium ; on the {} plan
film
  title = Lost Coast, Deep Blue, The Visit, Marathon, Snowfall
  minutes = 60..210 ; count
review > user (written by) > film (of) = reviewing
  stars = 1..5 ; count

[conference]
speaker*
  name = @person
  company = Acme, Globex, Initech, Umbra ; from {}
  country = @country ; from {}
talk > speaker (given by)
  title = Fast Code, Safe Cloud, Open Maps, Better Tests, Data Ethics
  track = web, security, data, mobile ; in the {} track
  minutes = 15..90 ; count
  attendees = 10..900 ; count

[tourism]
guide*
  name = @person
  language = English, French, Arabic, Korean ; speaking {}
tour
  title = Old Town Walk, Castle Trip, Wine Route, Night Lights, Lake Loop
  price = 10..300
booking > guide (with) > tour (for) = leading
  guests = 1..30 ; count

[ballet]
dancer*
  name = @person
  country = @country ; from {}
  age = 16..45
ballet
  title = Swan Tale, The Snow Prince, Fire Garden, Moon Steps, Red Ribbon
  composer = @person
  acts = 1..5 ; count
part > dancer (of) > ballet (in) = dancing in
  minutes = 2..60 ; count

[kitchens]
supplier
  name = Fresh Fields, Ocean Best, Mill House, Dairy Dale, Spice Road
  city = @city ; based in {}
  rating = 1.0..5.0
ingredient
  name = Flour, Butter, Saffron, Salmon, Rice
  calories = 10..900 ; count
delivery > supplier (from) > ingredient (of) = delivering
  quantity = 1..300 ; sum

[bridges]
bridge
  name = Iron Span, Kings Bridge, Golden Arch, Valley Cross, Long Pier
  city = @city ; located in {}
  length = 30..5000 ; sum, longest/shortest
  height = 5..300 ; greatest/smallest
  opened_year (opening year, year of opening) = 1850..2023 ; year opened
  ~ length - height

[towers]
tower
  name = Sky One, Azure, The Needle, Summit House, Glass Peak
  city = @city ; located in {}
  floors = 10..160 ; count
  height = 40..800 ; greatest/smallest
  architect = @person
  closed_on (closing date) = ?

[toys]
toy
  name = Puzzle Cube, Tin Robot, Rag Doll, Rail Set, Kite
  brand = Lumo, Playco, Tikki, Wondera ; made by {}
  price = 3..150
  min_age (minimum age) = 1..12
  max_age (maximum age) = 10..18
  ~ max_age - min_age

[skating]
coach*
  name = @person
  country = @country ; from {}
  experience (years of experience) = 1..40 ; count
skater* > coach (trained by)
  name = @person
  discipline = singles, pairs, dance ; competing in {}
  score = 50..330
  medals = 0..20 ; count
"""


def plural(phrase: str) -> str:
    """The plural of a noun phrase: "year of hire" -> "years of hire"."""
    head, of, rest = phrase.partition(" of ")
    irregular = {
        "series": "series",
        "person": "people",
        "species": "species",
        "sales": "sales",
        "child": "children",
    }
    word = head.split()[-1]
    if word in irregular:
        head = head.removesuffix(word) + irregular[word]
    elif word.endswith("y") and word[-2] not in "aeiou":
        head = head[:-1] + "ies"
    elif word.endswith(("s", "x", "z", "ch", "sh")):
        head += "es"
    else:
        head += "s"
    return head + of + rest


def article(phrase: str) -> str:
    """A noun phrase behind "a" or "an"."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("uni", "use", "eu"))
    return f"{'an' if vowel or phrase.startswith('hour') else 'a'} {phrase}"


@dataclass(frozen=True)
class Column:
    """A column: its declaration, its values and the words that a question uses for it."""

    name: str
    role: str  # label, category, number, count, year, date or optional
    type: str
    phrases: tuple[str, ...]
    values: tuple = ()  # the texts, or the lowest and the highest number
    says: tuple[str, ...] = ()  # ways to state a category: "from {}"
    verb: str = ""  # of a year or a date: "published"
    adjective: bool = False
    summable: bool = False
    extremes: tuple[str, str] = ("highest", "lowest")


@dataclass
class Table:
    """A table, the tables it refers to and the words between them."""

    singular: str
    person: bool
    columns: list[Column] = field(default_factory=list)
    parents: list[tuple["Table", str]] = field(default_factory=list)  # with the words between: "written by"
    link: str = ""  # the words between the two parents of a linking table: "enrolled in"
    pairs: list[tuple[Column, str, Column]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return plural(self.singular)

    @property
    def label(self) -> Column | None:
        """The column that names a row."""
        return next((column for column in self.columns if column.role == "label"), None)

    def having(self, *roles: str) -> list[Column]:
        """The columns of these roles."""
        return [column for column in self.columns if column.role in roles]

    def ddl(self, referenced: bool) -> str:
        """The CREATE TABLE statement; only a table that is referred to needs an id."""
        fields = ["id INTEGER PRIMARY KEY"] if referenced else []
        fields += [f"{column.name} {column.type}" for column in self.columns]
        fields += [f"{p.singular}_id INTEGER NOT NULL REFERENCES {p.name}(id)" for p, _ in self.parents]
        return f"CREATE TABLE {self.name} ({', '.join(fields)})"


@dataclass
class Schema:
    """One schema: the group that a split keeps together."""

    name: str
    tables: list[Table] = field(default_factory=list)

    @property
    def context(self) -> str:
        """The CREATE TABLE statements, one line."""
        referenced = [parent.name for table in self.tables for parent, _ in table.parents]
        return "; ".join(table.ddl(table.name in referenced) for table in self.tables)


def parse_column(line: str) -> Column:
    """Read one column of the notation above."""
    head, _, rest = line.partition(" = ")
    spec, _, options = rest.partition(" ; ")
    name, phrases = re.fullmatch(r"(\w+)(?: \((.*)\))?", head).groups()
    words = {"phrases": tuple(phrases.split(", ")) if phrases else (name.replace("_", " "),)}
    role, kind, values = "category", "TEXT", tuple(spec.split(", "))
    if spec == "?":
        role, values = "optional", ()
    elif spec.startswith("@"):
        values = tuple(POOLS[spec[1:]].split(", "))
    elif bounds := re.fullmatch(r"(-?[\d.]+?)\.\.(-?[\d.]+)", spec):
        role, kind = "number", "REAL" if "." in bounds[1] else "INTEGER"
        values = tuple(float(bound) if kind == "REAL" else int(bound) for bound in bounds.groups())
    if name in ("name", "title") and role == "category":
        role = "label"
    for option in options.split(", ") if options else ():
        first, _, second = option.partition(" ")
        if "{}" in option:
            words["says"] = (option,)
        elif first in ("year", "date"):
            role, words["verb"], words["extremes"] = first, second, ("latest", "earliest")
            kind = "DATE" if first == "date" else kind
        elif option == "adj":
            words["adjective"] = True
        elif option == "sum":
            words["summable"] = True
        elif option == "label":
            role = "label"
        elif option == "count":
            role, words["summable"], words["extremes"] = "count", True, ("most", "fewest")
        else:
            words["extremes"] = tuple(option.split("/"))
    return Column(name, role, kind, values=values, **words)


def parse(text: str = DOMAINS) -> list[Schema]:
    """Read every schema of the notation above."""
    schemas = []
    for line in filter(str.strip, text.splitlines()):
        if line.startswith("["):
            schemas.append(Schema(line.strip("[]")))
            continue
        tables = {table.singular: table for table in schemas[-1].tables}
        if not line.startswith(" "):
            head, _, link = line.partition(" = ")
            name = re.match(r"\w+", head)[0]
            parents = [(tables[parent], words) for parent, words in re.findall(r"> (\w+) \(([^)]*)\)", head)]
            person = head[len(name) :].startswith("*")
            schemas[-1].tables.append(Table(name, person, parents=parents, link=link))
        elif line.startswith("  ~ "):
            left, sign, right = line.split()[1:]
            table = schemas[-1].tables[-1]
            columns = {column.name: column for column in table.columns}
            table.pairs.append((columns[left], sign, columns[right]))
        else:
            schemas[-1].tables[-1].columns.append(parse_column(line.strip()))
    return schemas
